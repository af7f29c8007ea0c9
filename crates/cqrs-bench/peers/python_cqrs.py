"""python-cqrs, for the benchmarks of cqrs-bench: answers each request on stdin with a line on stdout.

Run by the interpreter that has it: `eval "$(scripts/peers env)"` names that in CQRS_PEER_CQRS5.
"""

import asyncio
import json
import logging
import sys
import time
import uuid

import cqrs
import di
from cqrs.bootstrap.requests import bootstrap
from cqrs.deserializers import JsonDeserializer
from cqrs.message_brokers import amqp, kafka, protocol

KEYS = 1_000
NAME = "somebody@example.org"


class Unsupported(Exception):
    pass


class Stopwatch:
    """The clock, and the processor time of this process."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def per_second(self, count):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"value": count / wall, "cpu_us": cpu * 1e6 / count}

    def nanos(self, count):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"value": wall * 1e9 / count, "cpu_us": cpu * 1e6 / count}


class Greeted(cqrs.Response):
    name: str


class Greet(cqrs.Request[Greeted]):
    name: str
    fail: bool


class Greeter(cqrs.RequestHandler[Greet, Greeted]):
    @property
    def events(self):
        return []

    async def handle(self, request):
        if request.fail:
            raise ValueError
        return Greeted(name=request.name)


class PassOn:
    async def __call__(self, request, handle):
        return await handle(request)


async def dispatch(calls, middlewares, fail):
    mediator = bootstrap(
        di_container=di.Container(),
        commands_mapper=lambda mapper: mapper.bind(Greet, Greeter),
        middlewares=[PassOn() for _ in range(middlewares)],
    )
    # A call takes a thousand times as long as one of the harness's: fewer give the same figure.
    calls = max(calls // 100, 100)
    watch = Stopwatch()
    for _ in range(calls):
        try:
            await mediator.send(Greet(name=NAME, fail=fail))
        except ValueError:
            pass
    return watch.nanos(calls)


class Benched(cqrs.NotificationEvent[dict]):
    pass


def event(number, filling):
    payload = {"user_id": f"{number % KEYS:04}", "filling": f"{number:010}{filling}"}
    return Benched(event_name="Benched", topic="bench", payload=payload)


def filling(body):
    """What makes a body of `body` bytes, or the least."""
    return "x" * max(0, body - len(json.dumps(event(0, "").to_dict(), separators=(",", ":"))))


def message(topic, number, text):
    made = event(number, text)
    return protocol.Message(
        message_name=made.event_name, message_id=made.event_id, topic=topic, payload=made.to_dict()
    )


async def publish(target, messages, tasks, window, codec, body):
    # One process has one thread: tasks that share the window change nothing.
    text, left = filling(body), iter(range(messages))
    async with broker(target) as (sender, topic):

        async def send():
            for number in left:
                await sender.send_message(message(topic, number, text))

        await sender.send_message(message(topic, 0, text))
        watch = Stopwatch()
        await asyncio.gather(*(send() for _ in range(window)))
        return watch.per_second(messages)


class broker:
    """A broker of python-cqrs, and the topic to publish to."""

    def __init__(self, target):
        self._kind, self._address, self._topic = target["broker"], target["address"], target["name"]

    async def __aenter__(self):
        if self._kind == "kafka":
            from cqrs.adapters.kafka import kafka_producer_factory

            self._producer = kafka_producer_factory(dsn=self._address)
            return kafka.KafkaMessageBroker(self._producer), self._topic
        from cqrs.adapters.amqp import amqp_publisher_factory

        # It declares exchange and queue anew with each message, in its own way: names of its own.
        self._topic = f"{self._topic}-python-{uuid.uuid4()}"
        publisher = amqp_publisher_factory(url=self._address)
        return amqp.AMQPMessageBroker(publisher, exchange_name=self._topic), self._topic

    async def __aexit__(self, *_):
        if self._kind == "kafka":
            await self._producer._producer.stop()
            return
        import aio_pika

        async with await aio_pika.connect(self._address) as connection:
            channel = await connection.channel()
            await channel.queue_delete(self._topic)


async def consume(target, messages, concurrency, codec):
    """aiokafka with the deserializer: python-cqrs has no consumer of Kafka of its own."""
    if target["broker"] != "kafka" or concurrency != 1:
        raise Unsupported("measured on Kafka, one message after the other")
    import aiokafka

    consumer = aiokafka.AIOKafkaConsumer(
        target["name"],
        bootstrap_servers=target["address"],
        group_id=str(uuid.uuid4()),
        auto_offset_reset="earliest",
        value_deserializer=JsonDeserializer(Benched),
    )
    await consumer.start()
    try:
        seen = 0
        async for record in consumer:
            assert len(record.value.payload["user_id"]) == 4
            seen += 1
            if seen == 1:
                watch = Stopwatch()
            if seen == messages:
                return watch.per_second(messages - 1)
    finally:
        await consumer.stop()


async def memory(**_):
    raise Unsupported("it has no broker in memory")


ANSWERS = {"dispatch": dispatch, "publish": publish, "consume": consume, "memory": memory}


async def answer(request):
    scenario = request.pop("scenario")
    if request.get("codec", "json") != "json":
        return {"unsupported": "only JSON is measured"}
    try:
        return await ANSWERS[scenario](**request)
    except Unsupported as why:
        return {"unsupported": str(why)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    # As in a service that logs warnings: debug lines would be most of the cost.
    logging.disable(logging.INFO)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(answer(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
