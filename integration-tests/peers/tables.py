"""The outbox and inbox tables of python-cqrs 5 on PostgreSQL: its models, repositories and producer."""

import contextlib

import cqrs
import sqlalchemy
from cqrs import compressors
from cqrs.inbox import map as inbox_map
from cqrs.inbox import sqlalchemy as inbox
from cqrs.mapping import outbox as outbox_map
from cqrs.outbox import sqlalchemy as outbox
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import protobuf
from events import MODELS, encode, make
from publishing import message_broker


@contextlib.asynccontextmanager
async def session_in(database, schema):
    """A session whose connection sees only `schema`."""
    engine = create_async_engine(
        database.replace("postgres://", "postgresql+asyncpg://"),
        connect_args={"server_settings": {"search_path": schema}},
    )
    try:
        async with AsyncSession(engine, expire_on_commit=False) as session:
            yield session
    finally:
        await engine.dispose()


def repository(session, style, compressed):
    """The repository of a service that knows both events, one of them in the class of `style`."""
    names = outbox_map.OutboxedEventMap()
    names.register("UserCreated", MODELS.get(style, MODELS["dataclass"]))
    names.register("UserJoined", protobuf.UserJoined, protobuf.serializer())
    compressor = compressors.ZlibCompressor() if compressed else None
    return cqrs.SqlAlchemyOutboxedEventRepository(session, compressor, event_map=names)


async def tables_create(database, schema):
    """As a migration of the service does."""
    async with session_in(database, schema) as session:
        connection = await session.connection()
        for base in (outbox.Base, inbox.Base):
            await connection.run_sync(base.metadata.create_all)
        await session.commit()


async def outbox_add(database, schema, topic, style, payloads, compressed, commit=True):
    """A handler's writes; tells the id and the wire bytes of each event."""
    async with session_in(database, schema) as session:
        rows = repository(session, style, compressed)
        codec = cqrs.serializers.JsonEventSerializer()
        if style == "protobuf":
            codec = protobuf.serializer()
        written = []
        for payload in payloads:
            event = (
                protobuf.make(payload, topic)
                if style == "protobuf"
                else make(style, payload, topic)
            )
            rows.add(event)
            written.append([str(event.event_id), encode(codec.serialize(event))])
        await (rows.commit() if commit else rows.rollback())
        return written


async def outbox_rows(database, schema):
    """The rows as the model reads them, by id."""
    async with session_in(database, schema) as session:
        query = sqlalchemy.select(outbox.OutboxModel).order_by(outbox.OutboxModel.id)
        return [
            {
                "event_id": str(row.event_id),
                "same_id": row.event_id_bin == row.event_id.bytes,
                "status": row.event_status.name,
                "attempts": row.flush_counter,
                "name": row.event_name,
                "topic": row.topic,
                "created_at": row.created_at.isoformat(),
            }
            for row in (await session.execute(query)).scalars()
        ]


async def outbox_produce(database, schema, style, compressed, broker, address, batches):
    """Lets the producer of a service send `batches` batches; tells how many events they had."""
    async with session_in(database, schema) as session:
        rows = repository(session, style, compressed)
        producer = cqrs.EventProducer(message_broker(broker, address, None), rows)
        sizes = []
        async for events in producer.event_batch_generator(batch_size=100):
            for event in events:
                await producer.send_message(event)
            await rows.commit()
            sizes.append(len(events))
            if len(sizes) == batches:
                return sizes


def messages(style):
    names = inbox_map.InboxMessageMap()
    names.register("UserCreated", MODELS[style])
    return names


async def inbox_add(database, schema, style, ids, payload):
    """Stores a message under each id; tells which ones are new."""
    async with session_in(database, schema) as session:
        rows = inbox.SqlAlchemyInboxRepository(session, message_map=messages(style))
        event = make(style, payload, "inbox")
        new = await rows.add([(each, event) for each in ids])
        await rows.commit()
        return new


async def inbox_pending(database, schema, style):
    """The ids that a worker would process."""
    async with session_in(database, schema) as session:
        rows = inbox.SqlAlchemyInboxRepository(session, message_map=messages(style))
        return [row.message_id for row in await rows.get_many()]
