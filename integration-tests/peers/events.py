"""The events both sides know, as a user of python-cqrs writes them, and how a test is told of them."""

import dataclasses
import datetime
import importlib.metadata
import uuid

import cqrs
import pydantic
from cqrs.deserializers import DeserializeJsonError
from cqrs.events import DCNotificationEvent

MAJOR = int(importlib.metadata.version("python-cqrs").split(".")[0])

# The class with validation has the short name in python-cqrs 4 only.
PydanticNotificationEvent = (
    cqrs.NotificationEvent if MAJOR == 4 else cqrs.PydanticNotificationEvent
)


class UserCreated(pydantic.BaseModel):
    user_id: str
    email: str
    visits: int
    balance: float
    tags: list[str]
    referred_by: str | None = None


@dataclasses.dataclass(frozen=True)
class UserCreatedData:
    user_id: str
    email: str
    visits: int
    balance: float
    tags: list[str]
    referred_by: str | None = None


if MAJOR == 4:

    @dataclasses.dataclass(frozen=True)
    class UserCreatedEvent(DCNotificationEvent[UserCreatedData]):
        # Said again: of the type in the brackets dataclasses know nothing.
        payload: UserCreatedData

else:

    class UserCreatedEvent(DCNotificationEvent[UserCreatedData]):
        event_name: str = "UserCreated"
        payload: UserCreatedData


MODELS = {
    "pydantic": PydanticNotificationEvent[UserCreated],
    "pydantic-dict": PydanticNotificationEvent[dict],
    "dataclass": UserCreatedEvent,
    # The keys of a dict stay as they are.
    "dataclass-dict": DCNotificationEvent[dict],
    # As the manual of python-cqrs has it.
    "alias": cqrs.NotificationEvent[UserCreated],
    # No event: what services write that know no python-cqrs.
    "payload": UserCreated,
}


def make(style, payload, topic, event_id=None, event_timestamp=None):
    """An event of the class that `style` names; without an id or a time those of python-cqrs."""
    payload_type = {"pydantic": UserCreated, "dataclass": UserCreatedData}.get(style, dict)
    fields = {"event_name": "UserCreated", "topic": topic, "payload": payload_type(**payload)}
    if event_id is not None:
        fields["event_id"] = uuid.UUID(event_id)
    if event_timestamp is not None:
        fields["event_timestamp"] = datetime.datetime.fromisoformat(event_timestamp)
    return MODELS[style](**fields)


EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def describe(value):
    """`value` in JSON: what it is, and what a test compares."""
    said = {"is": type(value).__name__}
    if value is None:
        return {"is": "None"}
    if hasattr(value, "event_id"):
        # Without an offset it is local time (the test says TZ=UTC).
        moment = value.event_timestamp.astimezone(datetime.timezone.utc) - EPOCH
        return said | {
            "event_id": str(value.event_id),
            "event_name": value.event_name,
            "topic": value.topic,
            "micros": moment // datetime.timedelta(microseconds=1),
            "naive": value.event_timestamp.tzinfo is None,
            "payload_is": type(value.payload).__name__,
            "payload": plain(value.payload),
        }
    if hasattr(value, "message_data"):  # an error of python-cqrs, as a value
        return said | {"error": value.error_type.__name__, "data": encode(value.message_data)}
    if isinstance(value, bytes):
        return said | {"data": encode(value)}
    return said | {"value": plain(value)}


def plain(value):
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def encode(data):
    return None if data is None else data.hex()


def decode(text):
    return None if text is None else bytes.fromhex(text)

