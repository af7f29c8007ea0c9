"""A service of python-cqrs that publishes: a command, its handler, and a mediator with a broker."""

import cqrs
import di
from cqrs.message_brokers import amqp, kafka
from cqrs.serializers import default_serializer

from events import MAJOR, describe, encode, make

if MAJOR == 4:
    from cqrs.requests.bootstrap import bootstrap

    class Announce(cqrs.Request):
        events: list

else:
    from cqrs.bootstrap.requests import bootstrap

    class Announce(cqrs.Request[None]):
        events: list


class AnnounceHandler(cqrs.RequestHandler[Announce, None]):
    def __init__(self):
        self._events = []

    @property
    def events(self):
        return self._events

    async def handle(self, request):
        self._events.extend(request.events)


_brokers = {}


def message_broker(broker, address, exchange):
    """One for each place, as a service has it."""
    place = (broker, address, exchange)
    if place not in _brokers:
        if broker == "kafka":
            from cqrs.adapters.kafka import kafka_producer_factory

            _brokers[place] = kafka.KafkaMessageBroker(kafka_producer_factory(dsn=address))
        else:
            from cqrs.adapters.amqp import amqp_publisher_factory

            publisher = amqp_publisher_factory(url=address)
            _brokers[place] = amqp.AMQPMessageBroker(publisher, exchange_name=exchange)
    return _brokers[place]


async def publish(broker, address, topic, style, events, exchange=None):
    """Sends a command whose handler emits `events`; tells them when they are published."""
    options = {}
    if style == "protobuf":
        import protobuf

        options["serializer"] = protobuf.serializer()
        events = [protobuf.make(topic=topic, **fields) for fields in events]
    else:
        events = [make(style, topic=topic, **fields) for fields in events]
    mediator = bootstrap(
        di_container=di.Container(),
        commands_mapper=lambda mapper: mapper.bind(Announce, AnnounceHandler),
        message_broker=message_broker(broker, address, exchange),
        **options,
    )
    await mediator.send(Announce(events=events))
    return [describe(event) for event in events]


async def dump(style, topic, event):
    """The body that python-cqrs writes for an event, without a broker."""
    return encode(default_serializer(make(style, topic=topic, **event)))

