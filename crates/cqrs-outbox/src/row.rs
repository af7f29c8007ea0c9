//! The rows of the `outbox` table, as writers insert them and the relay reads them.

use bytes::Bytes;
use cqrs_core::Message;
use cqrs_core::event::Timestamp;
use cqrs_core::message::Headers;
use sqlx::{ColumnIndex, Decode, Error, Type};
use uuid::Uuid;

use crate::compression;
use crate::headers;
use crate::lane::lane_of;
use crate::tables::Dialect;

/// A row to insert; the fields in the order in which [`Tables::insert`](crate::Tables::insert) binds them.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewRow<'m> {
    /// The lane, by the message's key; see [`lane_of`](crate::lane_of).
    pub lane: i16,
    /// The event's id.
    pub event_id: Uuid,
    /// The event's name.
    pub name: &'m str,
    /// The topic.
    pub topic: &'m str,
    /// The key.
    pub key: Option<&'m [u8]>,
    /// The media type of the body.
    pub content_type: Option<&'m str>,
    /// The headers as a JSON object of texts; a value of bytes is `{"hex": "00ff"}`.
    pub headers: Option<String>,
    /// The body, as it is stored.
    pub body: &'m [u8],
    /// The event's time, in microseconds since 1970-01-01 UTC.
    pub occurred_at: i64,
    /// `false` if the broker may drop the message when it has no receiver.
    pub mandatory: bool,
    /// Of a compressed body. Not in [`Tables::insert`](crate::Tables::insert): null there.
    pub(crate) uncompressed_size: Option<i32>,
}

impl<'m> NewRow<'m> {
    /// The row of `message`.
    pub fn new(message: &'m Message, dialect: Dialect) -> Self {
        Self {
            lane: lane_of(message.key.as_deref(), message.id, dialect.lanes()),
            event_id: message.id,
            name: &message.name,
            topic: &message.topic,
            key: message.key.as_deref(),
            content_type: message.content_type.as_deref(),
            headers: headers::to_json(&message.headers),
            body: &message.body,
            occurred_at: Timestamp::from(message.timestamp).unix_micros(),
            mandatory: message.mandatory,
            uncompressed_size: None,
        }
    }

    /// `true` if a body is compressed.
    pub(crate) fn is_any_compressed(rows: &[Self]) -> bool {
        rows.iter().any(|row| row.uncompressed_size.is_some())
    }

    /// The row with its body [compressed](compression::compress).
    pub(crate) fn compressed(self, body: &'m [u8]) -> Self {
        Self { uncompressed_size: i32::try_from(self.body.len()).ok(), body, ..self }
    }
}

impl std::fmt::Debug for NewRow<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewRow")
            .field("lane", &self.lane)
            .field("event_id", &self.event_id)
            .field("name", &self.name)
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// Reads the messages of rows. Rows next to each other have the same topic, name and media type, most often: their
/// messages share these texts.
#[derive(Debug)]
pub(crate) struct MessageReader {
    /// With the texts of the last row, and nothing else of it.
    last: Message,
}

impl MessageReader {
    pub(crate) fn new() -> Self {
        Self { last: Message::new("", Bytes::new()) }
    }

    /// The message of a row with the columns of [`message_columns`], by name.
    pub(crate) fn read<'r, R: sqlx::Row>(&mut self, row: &'r R) -> Result<Message, Error>
    where
        &'static str: ColumnIndex<R>,
        i64: Decode<'r, R::Database> + Type<R::Database>,
        bool: Decode<'r, R::Database> + Type<R::Database>,
        Uuid: Decode<'r, R::Database> + Type<R::Database>,
        &'r str: Decode<'r, R::Database> + Type<R::Database>,
        Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    {
        let last = &mut self.last;
        let topic: &str = row.try_get("topic")?;
        if &*last.topic != topic {
            last.topic = topic.into();
        }
        let name: &str = row.try_get("name")?;
        if &*last.name != name {
            last.name = name.into();
        }
        let content_type: Option<&str> = row.try_get("content_type")?;
        if last.content_type.as_deref() != content_type {
            last.content_type = content_type.map(Into::into);
        }
        let mut message = last.clone();
        message.id = row.try_get("event_id")?;
        message.key = row.try_get::<Option<Vec<u8>>, _>("key")?.map(Bytes::from);
        message.headers = read_headers(row)?;
        message.timestamp = Timestamp::from_unix_micros(row.try_get("occurred_at")?).into();
        message.mandatory = row.try_get("mandatory")?;
        message.body = read_body(row)?.into();
        Ok(message)
    }
}

/// The body of a row, decompressed.
pub(crate) fn read_body<'r, R: sqlx::Row>(row: &'r R) -> Result<Vec<u8>, Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    let body = row.try_get::<Vec<u8>, _>("body")?;
    let Some(size) = row.try_get("uncompressed_size")? else { return Ok(body) };
    compression::decompress(&body, size)
        .map_err(|reason| Error::ColumnDecode { index: "body".into(), source: reason.into() })
}

/// The bytes of the body of a row that cannot be read.
pub(crate) fn unread_size<'r, R: sqlx::Row>(row: &'r R) -> usize
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    let uncompressed = row.try_get::<Option<i64>, _>("uncompressed_size").ok().flatten();
    match uncompressed.and_then(|size| usize::try_from(size).ok()) {
        Some(size) => size,
        None => row.try_get::<Vec<u8>, _>("body").map_or(0, |body| body.len()),
    }
}

/// The headers of a row.
pub(crate) fn read_headers<'r, R: sqlx::Row>(row: &'r R) -> Result<Headers, Error>
where
    &'static str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let Some(json) = row.try_get::<Option<&str>, _>("headers")? else {
        return Ok(Headers::new());
    };
    headers::from_json(json).map_err(|error| {
        // Its own text quotes the value.
        let (category, column) = (error.classify(), error.column());
        let source = format!("no JSON object of headers ({category:?}, column {column})");
        Error::ColumnDecode { index: "headers".into(), source: source.into() }
    })
}

/// The select list of a row with its message, from a table with the alias `r`.
pub(crate) fn message_columns(dialect: Dialect) -> String {
    format!("{}, {}", columns_without_body(dialect), body_columns(dialect))
}

/// The select list that [`read_body`] reads, from a table with the alias `r`.
pub(crate) const fn body_columns(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => "r.body, r.uncompressed_size::int8 AS uncompressed_size",
        Dialect::Mysql => "r.body, CAST(r.uncompressed_size AS SIGNED) AS uncompressed_size",
        Dialect::Sqlite => "r.body, r.uncompressed_size",
    }
}

/// As [`message_columns`], without the body.
pub(crate) const fn columns_without_body(dialect: Dialect) -> &'static str {
    match dialect {
        // An endless time is no number, and would be an error of the statement.
        Dialect::Postgres => {
            "r.lane, r.id, r.event_id, r.name, r.topic, r.key, r.content_type, \
             r.headers::text AS headers, r.mandatory, CASE WHEN isfinite(r.occurred_at) \
             THEN (extract(epoch FROM r.occurred_at) * 1000000)::int8 END AS occurred_at"
        }
        // After a dot a reserved word (`key` on MySQL) is a name.
        Dialect::Mysql | Dialect::Sqlite => {
            "r.lane, r.id, r.event_id, r.name, r.topic, r.key, r.content_type, r.headers, \
             r.mandatory, r.occurred_at"
        }
    }
}

#[cfg(feature = "sqlite")]
#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use sqlx::{AssertSqlSafe, Row as _, Sqlite};

    use super::*;
    use crate::SqliteOutbox;

    /// A message with every field set, and one with none.
    fn messages() -> [Message; 2] {
        let mut headers = Headers::new();
        headers.insert("zone", "é").unwrap();
        headers.insert_bytes("raw", vec![0, 0xff]).unwrap();
        // The table keeps microseconds.
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        let full = Message::new("users", vec![0, 0xff])
            .with_key(vec![0xff, 0])
            .with_name("UserAdded")
            .with_content_type("application/json")
            .with_headers(headers)
            .with_timestamp(time)
            .with_mandatory(false)
            .with_id(Uuid::from_u128(1));
        let empty = Message::new("empty", "")
            .with_timestamp(SystemTime::UNIX_EPOCH)
            .with_id(Uuid::from_u128(2));
        [full, empty]
    }

    #[tokio::test]
    async fn row_reads_back_as_it_was_written() {
        // One connection: each has a database of its own in memory.
        let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
        let pool = options.connect("sqlite::memory:").await.unwrap();
        let outbox = SqliteOutbox::new(pool.clone());
        outbox.migrate().await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        outbox.put(&mut connection, &messages()).await.unwrap();
        let columns = message_columns(Dialect::Sqlite);
        let sql = format!("SELECT {columns} FROM cqrs_outbox r ORDER BY r.id");
        let query = sqlx::query::<Sqlite>(AssertSqlSafe(sql));
        let rows = query.fetch_all(&mut *connection).await.unwrap();
        let mut reader = MessageReader::new();
        let read: Vec<_> = rows.iter().map(|row| reader.read(row).unwrap()).collect();
        assert_eq!(read, messages());
        let ids: Vec<(i16, i64)> =
            rows.iter().map(|row| (row.get("lane"), row.get("id"))).collect();
        assert_eq!(ids, [(0, 1), (0, 2)]);
    }
}
