"""Consumers that give bodies to python-cqrs's deserializers, without FastStream."""

import asyncio

from cqrs.deserializers import JsonDeserializer

from events import MODELS, decode, describe


def deserializer(model):
    if model == "protobuf":
        import protobuf

        return protobuf.deserializer()
    return JsonDeserializer(MODELS[model])


async def deserialize(model, bodies):
    """What the deserializer makes of `bodies`, without a broker."""
    read = deserializer(model)
    return [describe(read(decode(body))) for body in bodies]


async def consume_kafka(push, address, topic, model):
    """aiokafka with the deserializer in its own place for one."""
    import aiokafka

    consumer = aiokafka.AIOKafkaConsumer(
        topic,
        bootstrap_servers=address,
        auto_offset_reset="earliest",
        metadata_max_age_ms=1_000,
        value_deserializer=deserializer(model),
    )
    await consumer.start()

    async def run():
        async for record in consumer:
            headers = [[name, value.decode()] for name, value in record.headers]
            push(describe(record.value) | {"headers": headers})

    task = asyncio.create_task(run())

    async def stop():
        task.cancel()
        await consumer.stop()

    return stop


async def consume_amqp(push, address, queue, model):
    """python-cqrs's own consumer, which declares the queue as its publisher does."""
    from cqrs.adapters.amqp import amqp_consumer_factory

    read = deserializer(model)

    async def handle(message):
        push(
            describe(read(message.body))
            | {
                "headers": [[name, str(value)] for name, value in message.headers.items()],
                "content_type": message.content_type,
                "message_id": message.message_id,
                "correlation_id": message.correlation_id,
            }
        )
        await message.ack()

    consumer = amqp_consumer_factory(url=address)
    task = asyncio.create_task(consumer.consume(handle, queue))

    async def stop():
        task.cancel()
        await consumer.channel_pool.close()

    return stop
