use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use cqrs_core::consume::{Incoming, RETRY_HEADERS};
use cqrs_core::message::{Headers, header};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::copy::{ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY};
use super::plan::QueuePlan;

/// A delivery as it came, for copies: the typed headers and all properties.
#[derive(Debug, Default)]
pub(super) struct Original {
    /// What it was first published to, in a retry copy too.
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl Original {
    /// Takes a delivery of `queue` apart.
    pub(super) fn new(delivery: Delivery, queue: &str) -> Self {
        let Delivery { exchange, routing_key, properties, data, .. } = delivery;
        let mut original = Self { exchange, routing_key, properties, body: data.into() };
        if let Some((exchange, routing_key)) = original.of_copy(queue) {
            (original.exchange, original.routing_key) = (exchange, routing_key);
        }
        original
    }

    /// Where a retry copy of ours was first published to. Only what came straight to the queue and has
    /// the headers of a retry is one.
    fn of_copy(&self, queue: &str) -> Option<(ShortString, ShortString)> {
        if !self.exchange.as_str().is_empty() || self.routing_key.as_str() != queue {
            return None;
        }
        let headers = self.headers()?.inner();
        headers.get(RETRY_HEADERS[0])?;
        let text = |name| match headers.get(name)? {
            AMQPValue::LongString(text) => {
                ShortString::try_new(std::str::from_utf8(text.as_bytes()).ok()?).ok()
            }
            _ => None,
        };
        Some((text(ORIGINAL_EXCHANGE)?, text(ORIGINAL_ROUTING_KEY)?))
    }

    pub(super) fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.headers()?.inner().get(name)
    }

    /// A number that the server wrote into the headers.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        integer(self.header(name)?)
    }

    /// Its place in a stream.
    pub(super) fn stream_offset(&self) -> Option<u64> {
        self.number(STREAM_OFFSET).and_then(|offset| u64::try_from(offset).ok())
    }

    /// The message as the handlers see it.
    pub(super) fn view(&self, queue: &QueuePlan, redelivered: bool) -> Incoming {
        let routing_key = self.routing_key.as_str();
        let known = queue.topics.iter().find(|topic| &***topic == routing_key);
        let topic = known.map_or_else(|| Arc::from(routing_key), Arc::clone);
        let mut incoming = Incoming::new(topic, self.body.clone());
        let properties = &self.properties;
        let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().into());
        incoming.key = self.header(header::KEY).and_then(key);
        incoming.headers = self.headers().map(text_headers).unwrap_or_default();
        let header = |name| incoming.headers.get(name).map(Arc::from);
        incoming.id = text(properties.message_id()).or_else(|| header(header::MESSAGE_ID));
        incoming.name = text(properties.kind()).or_else(|| header(header::EVENT_NAME));
        incoming.content_type = text(properties.content_type());
        incoming.timestamp = properties
            .timestamp()
            .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        incoming.offset = self.number(STREAM_OFFSET);
        incoming.queue = Some(Arc::clone(&queue.name));
        incoming.redelivered = redelivered;
        if incoming.headers.correlation_id().is_none()
            && let Some(id) = properties.correlation_id()
        {
            incoming.headers.set_correlation_id(id.as_str());
        }
        incoming
    }
}

/// The header in which RabbitMQ tells a message's offset in its stream.
const STREAM_OFFSET: &str = "x-stream-offset";

fn key(value: &AMQPValue) -> Option<Bytes> {
    match value {
        AMQPValue::LongString(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => Some(Bytes::copy_from_slice(bytes.as_slice())),
        AMQPValue::ShortString(text) => Some(Bytes::copy_from_slice(text.as_str().as_bytes())),
        _ => None,
    }
}

fn text_headers(table: &FieldTable) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in table {
        let text = match value {
            AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
                Ok(text) => text.to_owned(),
                Err(_) => continue,
            },
            AMQPValue::ShortString(text) => text.to_string(),
            AMQPValue::Boolean(flag) => flag.to_string(),
            other => match integer(other) {
                Some(number) => number.to_string(),
                None => continue,
            },
        };
        // Only an empty name is refused, which no header of text needs.
        let _empty = headers.insert(name.as_str(), text);
    }
    headers
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(number) => Some(number.into()),
        AMQPValue::ShortShortUInt(number) => Some(number.into()),
        AMQPValue::ShortInt(number) => Some(number.into()),
        AMQPValue::ShortUInt(number) => Some(number.into()),
        AMQPValue::LongInt(number) => Some(number.into()),
        AMQPValue::LongUInt(number) => Some(number.into()),
        AMQPValue::LongLongInt(number) => Some(number),
        _ => None,
    }
}
