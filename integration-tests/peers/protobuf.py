"""python-cqrs's example event with its Protobuf schema, which is built here, so that no protoc is needed.

    message UserJoinedPayload { string user_id = 1; string meeting_id = 2; }
    message UserJoinedNotification {
        string event_id = 1; string event_timestamp = 2; string event_name = 3;
        UserJoinedPayload payload = 6;
    }
"""

import datetime
import uuid

import cqrs
from cqrs.deserializers import DeserializeProtobufError as Error
from cqrs.deserializers import ProtobufDeserializer
from cqrs.serializers import ProtobufEventSerializer
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _messages():
    string = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    message = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
    file = descriptor_pb2.FileDescriptorProto(
        name="user_joined.proto", package="meetings", syntax="proto3"
    )

    def declare(name, fields):
        declared = file.message_type.add(name=name)
        for number, field, kind in fields:
            added = declared.field.add(name=field, number=number, type=kind, label=1)
            if kind == message:
                added.type_name = ".meetings.UserJoinedPayload"

    declare("UserJoinedPayload", [(1, "user_id", string), (2, "meeting_id", string)])
    declare(
        "UserJoinedNotification",
        [
            (1, "event_id", string),
            (2, "event_timestamp", string),
            (3, "event_name", string),
            (6, "payload", message),
        ],
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("UserJoinedNotification", "UserJoinedPayload")
    found = [pool.FindMessageTypeByName(f"meetings.{name}") for name in names]
    return [message_factory.GetMessageClass(each) for each in found]


Notification, Payload = _messages()


class UserJoined(cqrs.NotificationEvent[dict]):
    event_name: str = "UserJoined"
    payload: dict

    def proto(self):
        return Notification(
            event_id=str(self.event_id),
            event_timestamp=self.event_timestamp.isoformat(),
            event_name=self.event_name,
            payload=Payload(**self.payload),
        )

    @classmethod
    def from_proto(cls, proto):
        return cls(
            event_id=uuid.UUID(proto.event_id),
            event_timestamp=datetime.datetime.fromisoformat(proto.event_timestamp),
            event_name=proto.event_name,
            topic="of the message",
            payload={
                "user_id": proto.payload.user_id,
                "meeting_id": proto.payload.meeting_id,
            },
        )


def make(payload, topic, event_id=None, event_timestamp=None):
    fields = {"payload": payload, "topic": topic}
    if event_id is not None:
        fields["event_id"] = uuid.UUID(event_id)
    if event_timestamp is not None:
        fields["event_timestamp"] = datetime.datetime.fromisoformat(event_timestamp)
    return UserJoined(**fields)


def serializer():
    return ProtobufEventSerializer({UserJoined: Notification})


def deserializer():
    return ProtobufDeserializer(UserJoined, Notification)


__all__ = ["Error", "UserJoined", "deserializer", "make", "serializer"]
