"""aiokafka and aio-pika as they are: bytes that no framework would write, and a member of a group."""

import asyncio

from events import decode


async def send_kafka(address, topic, records):
    """Produces with aiokafka's default partitioner; tells the partitions."""
    import aiokafka

    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address)
    await producer.start()
    try:
        sent = []
        for record in records:
            key, value = decode(record.get("key")), decode(record["body"])
            sent.append(await producer.send(topic, value, key=key))
        return [(await confirmed).partition for confirmed in sent]
    finally:
        await producer.stop()


async def send_amqp(address, exchange, routing_key, bodies):
    import aio_pika

    async with await aio_pika.connect_robust(address) as connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange) if exchange else channel.default_exchange
        for body in bodies:
            await target.publish(aio_pika.Message(decode(body)), routing_key)


async def join_group(push, address, topic, group, session_ms, take_ms=0):
    """A member of a group under the range assignor that commits what it has handled."""
    import aiokafka
    from aiokafka.coordinator.assignors.range import RangePartitionAssignor

    consumer = aiokafka.AIOKafkaConsumer(
        bootstrap_servers=address,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=session_ms,
        heartbeat_interval_ms=500,
        max_poll_records=10,
        partition_assignment_strategy=[RangePartitionAssignor],
    )

    class Listener(aiokafka.ConsumerRebalanceListener):
        async def on_partitions_revoked(self, revoked):
            push({"revoked": sorted(each.partition for each in revoked)})

        async def on_partitions_assigned(self, assigned):
            push({"assigned": sorted(each.partition for each in assigned)})

    consumer.subscribe([topic], listener=Listener())
    await consumer.start()

    async def run():
        async for record in consumer:
            await asyncio.sleep(take_ms / 1_000)
            push({"partition": record.partition, "body": record.value.decode()})
            place = aiokafka.TopicPartition(record.topic, record.partition)
            try:
                await consumer.commit({place: (record.offset + 1, "handled by Python")})
            except aiokafka.errors.CommitFailedError:
                pass  # rebalanced meanwhile: it comes again, here or elsewhere

    task = asyncio.create_task(run())

    async def stop():
        task.cancel()
        await consumer.stop()

    return stop
