"""Confluent's serializers and deserializers, without Kafka: what counts is the bytes and the headers.

Protobuf messages are declared here, so that no protoc is needed; the twin of
`integration-tests/src/interop/meetings.rs`:

    message UserJoinedPayload { string user_id = 1; string meeting_id = 2; }
    message UserJoinedNotification {
        string event_id = 1; string event_timestamp = 2; string event_name = 3;
        UserJoinedPayload payload = 6;
    }
"""

import functools
import io

from confluent_kafka import schema_registry
from confluent_kafka.schema_registry import SchemaRegistryClient, json_schema, protobuf, serde
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory


@functools.cache
def _client(url):
    """One for all requests: a `mock://` registry is the client's own memory."""
    return SchemaRegistryClient.new_client({"url": url})


@functools.cache
def _message(layout):
    """The class of the notification in a file of one of three layouts: the message stands at the
    path [0] ("first"), [1] ("second") or [0, 1] ("nested").
    """
    string = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    message = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
    package = f"meetings.{layout}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{layout}.proto", package=package, syntax="proto3"
    )
    into, scope = file.message_type, package
    if layout == "nested":
        into, scope = file.message_type.add(name="Meetings").nested_type, f"{package}.Meetings"

    def declare(name, fields):
        declared = into.add(name=name)
        for number, field, kind in fields:
            added = declared.field.add(name=field, number=number, type=kind, label=1)
            if kind == message:
                added.type_name = f".{scope}.UserJoinedPayload"

    def payload():
        declare("UserJoinedPayload", [(1, "user_id", string), (2, "meeting_id", string)])

    def notification():
        names = ["event_id", "event_timestamp", "event_name"]
        fields = [(number, name, string) for number, name in enumerate(names, 1)]
        declare("UserJoinedNotification", [*fields, (6, "payload", message)])

    for part in [notification, payload] if layout == "first" else [payload, notification]:
        part()
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"{scope}.UserJoinedNotification")
    return message_factory.GetMessageClass(found)


async def confluent_write(registry, topic, value, header=False, schema=None, layout=None, auto=True):
    """Serializes `value` with a JSON Schema, or as the Protobuf message of a layout."""
    client, headers = _client(registry), []
    conf = {"auto.register.schemas": auto}
    if not auto:
        conf["use.latest.version"] = True
    if header:
        conf["schema.id.serializer"] = schema_registry.header_schema_id_serializer
    if layout is None:
        serializer = json_schema.JSONSerializer(schema, client, conf=conf)
    else:
        value = json_format.ParseDict(value, _message(layout)())
        serializer = protobuf.ProtobufSerializer(_message(layout), client, conf)
    context = SerializationContext(topic, MessageField.VALUE, headers)
    body = serializer(value, context)
    registered = client.get_latest_version(f"{topic}-value")
    return {
        "body": body.hex(),
        "headers": [[name, value.hex()] for name, value in headers],
        "id": registered.schema_id,
        "guid": registered.guid,
    }


async def confluent_read(topic, body, headers=(), registry=None, layout=None):
    """Deserializes; the schema comes from the registry. Protobuf needs none."""
    client = None if registry is None else _client(registry)
    if layout is None:
        deserializer = json_schema.JSONDeserializer(None, schema_registry_client=client)
    else:
        deserializer = protobuf.ProtobufDeserializer(
            _message(layout), schema_registry_client=client
        )
    headers = [(name, bytes.fromhex(value)) for name, value in headers]
    context = SerializationContext(topic, MessageField.VALUE, headers)
    value = deserializer(bytes.fromhex(body), context)
    return value if layout is None else json_format.MessageToDict(
        value, preserving_proto_field_name=True
    )


async def confluent_frame(kind, number=None, guid=None, path=None):
    """The bytes that the serializers put before a body, or into the header."""
    frame = serde.SchemaId(kind, number, guid, path)
    return (frame.id_to_bytes() if guid is None else frame.guid_to_bytes()).hex()


async def confluent_parse(kind, body, headers=()):
    """What the deserializers read of a frame, wherever it is, and what they take for the body."""
    frame = serde.SchemaId(kind)
    headers = [(name, bytes.fromhex(value)) for name, value in headers]
    context = SerializationContext("any", MessageField.VALUE, headers)
    rest = schema_registry.dual_schema_id_deserializer(bytes.fromhex(body), context, frame)
    assert isinstance(rest, io.BytesIO)
    return {
        "number": frame.id,
        "guid": None if frame.guid is None else str(frame.guid),
        "path": frame.message_indexes,
        "body": rest.read().hex(),
    }
