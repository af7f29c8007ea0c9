"""Services of FastStream: subscribers with and without python-cqrs's deserializers, and publishers."""

import faststream
import pydantic
from faststream import AckPolicy, kafka, rabbit

from events import MODELS, DeserializeJsonError, describe
from reading import deserializer


def subscriber_body(read, model):
    """The annotation of a handler's body."""
    if model is None:
        return None
    if model == "protobuf":
        import protobuf

        return protobuf.UserJoined | protobuf.Error | None
    body = MODELS[model]
    # FastStream's own decoding ends in the model or in an exception.
    return body if read is None else body | DeserializeJsonError | None


def handler(push, body, message_type):
    """One that tells the test what it was called with; with a body of no type, whatever comes."""

    def told(value, message):
        push(
            describe(value)
            | {
                "correlation_id": message.correlation_id,
                "content_type": message.content_type,
                "headers": [[name, str(value)] for name, value in message.headers.items()],
            }
        )

    if body is None:

        async def handle(message: message_type):
            told(await message.decode(), message)

    else:

        async def handle(body: body, message: message_type):
            told(body, message)

    return handle


def decoder(read):
    async def decode(message):
        return read(message.body)

    return decode


async def empty_message_decoder(message, original_decoder):
    """As the manual of python-cqrs has it."""
    if not message.body:
        return None
    return await original_decoder(message)


def options(read, model):
    """Where `read` puts the deserializer: nowhere, or into an option of the subscriber.

    The manual of python-cqrs has `parser=JsonDeserializer(...)` for RabbitMQ, too. That cannot work: a
    parser gets the message of aio-pika and must return FastStream's.
    """
    match read:
        case None:
            return {}
        case "value_deserializer":
            return {"value_deserializer": deserializer(model)}
        case "decoder":
            return {"decoder": decoder(deserializer(model))}
        case "manual":
            return {"value_deserializer": deserializer(model), "decoder": empty_message_decoder}


async def started(broker):
    app = faststream.FastStream(broker)
    await app.start()
    return app.stop


async def faststream_kafka(push, address, topic, group, model=None, read=None):
    broker = kafka.KafkaBroker(address)
    subscriber = broker.subscriber(
        topic,
        group_id=group,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.ACK,
        **options(read, model),
    )
    subscriber(handler(push, subscriber_body(read, model), kafka.KafkaMessage))
    return await started(broker)


async def faststream_amqp(
    push, address, queue, exchange=None, model=None, read=None, declare=True
):
    broker = rabbit.RabbitBroker(address)
    subscriber = broker.subscriber(
        rabbit.RabbitQueue(queue, declare=declare),
        rabbit.RabbitExchange(exchange, declare=declare) if exchange else None,
        # Handlers run at the same time; with one message at a time, in order.
        channel=rabbit.Channel(prefetch_count=1),
        **options(read, model),
    )
    subscriber(handler(push, subscriber_body(read, model), rabbit.RabbitMessage))
    return await started(broker)


class Signup(pydantic.BaseModel):
    """A body of FastStream's own that reads as an event of python-cqrs."""

    payload: dict
    event_id: str
    event_timestamp: str
    event_name: str
    topic: str


# Of the bodies that FastStream publishes.
BODIES = {None: dict, "event": Signup, "payload": MODELS["payload"]}


async def faststream_publish(
    broker, address, topic, bodies, exchange=None, model=None, correlation_id=None, key=None
):
    """Publishes `bodies` as FastStream does, one after the other."""
    bodies = [BODIES[model](**body) for body in bodies]
    if broker == "kafka":
        async with kafka.KafkaBroker(address) as connected:
            for body in bodies:
                await connected.publish(
                    body,
                    topic,
                    key=None if key is None else key.encode(),
                    correlation_id=correlation_id,
                )
    else:
        async with rabbit.RabbitBroker(address) as connected:
            for body in bodies:
                await connected.publish(
                    body,
                    routing_key=topic,
                    exchange=rabbit.RabbitExchange(exchange, declare=False) if exchange else None,
                    correlation_id=correlation_id,
                )
