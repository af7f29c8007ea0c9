//! A received message as the server sent it, and as handlers see it; part of the consumer.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use cqrs_core::consume::{Incoming, RETRY_HEADERS, RetryState};
use cqrs_core::message::{ByteString, Headers, header};
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, BasicProperties};

use super::plan::{QUARANTINE, QueuePlan};
use crate::headers::{
    ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, STREAM_OFFSET, UNREADABLE, is_of_retry, is_server_made,
};

/// A message as the server sent it, for copies: the typed headers and all properties.
#[derive(Debug, Default)]
pub(super) struct Original {
    /// The exchange it was first published to, of a retry copy too.
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
    /// Set for a retry copy of ours.
    pub(super) is_copy: bool,
}

impl Original {
    /// Takes a delivery of `queue` apart: its acker and the rest.
    pub(super) fn new(delivery: Delivery, queue: &str) -> (Acker, Self) {
        let Delivery { exchange, routing_key, properties, data, acker, .. } = delivery;
        let body = data.into();
        let mut original = Self { exchange, routing_key, properties, body, is_copy: false };
        if let Some((exchange, routing_key)) = original.first_published(queue) {
            (original.exchange, original.routing_key) = (exchange, routing_key);
            original.is_copy = true;
        }
        (acker, original)
    }

    /// The exchange and routing key that a retry copy of ours was first published with. A retry copy was
    /// published straight to the queue and has the headers of a retry.
    fn first_published(&self, queue: &str) -> Option<(ShortString, ShortString)> {
        let key = self.routing_key.as_str();
        let is_ours = key == queue || key.strip_suffix(QUARANTINE) == Some(queue);
        if !self.exchange.as_str().is_empty() || !is_ours {
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

    /// The number in a header of the server.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        integer(self.header(name)?)
    }

    /// Its offset in a stream.
    pub(super) fn stream_offset(&self) -> Option<u64> {
        self.number(STREAM_OFFSET).and_then(|offset| u64::try_from(offset).ok())
    }

    /// The earlier attempts, read from its headers.
    pub(super) fn retry(&self) -> RetryState {
        match self.headers() {
            // All copies have the first of them.
            Some(table) if table.contains_key(RETRY_HEADERS[0]) => {
                let shown = |name: &str| RETRY_HEADERS.contains(&name);
                RetryState::from_headers(&shown_headers(table, shown, &mut Texts::default()))
            }
            _ => RetryState::default(),
        }
    }

    /// The message as handlers see it, the same on every attempt.
    pub(super) fn view(&self, queue: &QueuePlan, redelivered: bool) -> Incoming {
        let routing_key = self.routing_key.as_str();
        let known = queue.topics.iter().find(|topic| &***topic == routing_key);
        let topic = known.map_or_else(|| Arc::from(routing_key), Arc::clone);
        let mut incoming = Incoming::new(topic, self.body.clone());
        let properties = &self.properties;
        let mut texts = Texts::of(properties);
        incoming.key = self.header(header::KEY).and_then(bytes).map(|key| texts.bytes(key));
        if let Some(table) = self.headers() {
            let shown = |name: &str| !(is_server_made(name) || (self.is_copy && is_of_retry(name)));
            incoming.headers = shown_headers(table, shown, &mut texts);
        }
        let mut text =
            |value: &Option<ShortString>| value.as_ref().map(|text| texts.text(text.as_str()));
        let header = |name| incoming.headers.get(name).map(Into::into);
        incoming.id = text(properties.message_id()).or_else(|| header(header::MESSAGE_ID));
        incoming.name = text(properties.kind()).or_else(|| header(header::EVENT_NAME));
        incoming.content_type = text(properties.content_type());
        incoming.timestamp = properties
            .timestamp()
            .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        incoming.offset = self.number(STREAM_OFFSET);
        incoming.queue = Some(Arc::clone(&queue.name));
        incoming.redelivered = redelivered;
        incoming.unreadable = incoming.headers.get(UNREADABLE).map(Arc::from);
        if incoming.headers.correlation_id().is_none()
            && let Some(id) = text(properties.correlation_id())
        {
            incoming.headers.set_correlation_id(id);
        }
        incoming
    }
}

/// The texts of one message, in one buffer that they share: most messages have several.
#[derive(Default)]
struct Texts(BytesMut);

impl Texts {
    /// With room for the properties and the headers whose values are text or bytes.
    fn of(properties: &BasicProperties) -> Self {
        let headers = properties.headers().iter().flatten();
        let headers = headers.map(|(name, value)| {
            let twice_the_key = if name.as_str() == header::KEY { 2 } else { 1 };
            name.as_str().len() + twice_the_key * bytes(value).map_or(0, <[u8]>::len)
        });
        let of_properties = [
            properties.message_id(),
            properties.kind(),
            properties.content_type(),
            properties.correlation_id(),
        ];
        let of_properties = of_properties.into_iter().flatten().map(|text| text.as_str().len());
        Self(BytesMut::with_capacity(headers.chain(of_properties).sum()))
    }

    fn bytes(&mut self, bytes: &[u8]) -> Bytes {
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }

    fn text(&mut self, text: &str) -> ByteString {
        ByteString::try_from(self.bytes(text.as_bytes())).unwrap_or_default()
    }

    /// The name of a header. Those of the framework are not copied.
    fn name(&mut self, name: &str) -> ByteString {
        const KNOWN: [&str; 6] = [
            header::KEY,
            header::CORRELATION_ID,
            header::TRACEPARENT,
            header::TRACESTATE,
            header::EVENT_NAME,
            header::MESSAGE_ID,
        ];
        match KNOWN.into_iter().find(|known| *known == name) {
            Some(known) => ByteString::from_static(known),
            None => self.text(name),
        }
    }
}

/// The value of a header that is text or bytes.
fn bytes(value: &AMQPValue) -> Option<&[u8]> {
    match value {
        AMQPValue::LongString(text) => Some(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
        AMQPValue::ShortString(text) => Some(text.as_str().as_bytes()),
        _ => None,
    }
}

fn shown_headers(table: &FieldTable, shown: impl Fn(&str) -> bool, texts: &mut Texts) -> Headers {
    let mut pairs = Vec::with_capacity(table.inner().len());
    for (name, value) in table.into_iter().filter(|(name, _)| shown(name.as_str())) {
        let value = match value {
            AMQPValue::Boolean(flag) => flag.to_string().into(),
            AMQPValue::Float(number) => number.to_string().into(),
            AMQPValue::Double(number) => number.to_string().into(),
            other => match (bytes(other), integer(other)) {
                (Some(bytes), _) => texts.bytes(bytes),
                (None, Some(number)) => number.to_string().into(),
                (None, None) => continue,
            },
        };
        pairs.push((texts.name(name.as_str()), value));
    }
    Headers::from_pairs(pairs)
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

#[cfg(test)]
mod tests {
    use cqrs_core::consume::{StatusReporter, SubscribeRequest, TopicSet};

    use super::super::copy_properties;
    use super::super::plan::Plan;
    use super::*;
    use crate::config::AmqpConfig;

    fn queue() -> QueuePlan {
        let topics = TopicSet::Named(vec!["t".into()]);
        let request = SubscribeRequest::new(topics, "g", StatusReporter::new().0);
        Plan::new(&request, &AmqpConfig::default()).unwrap().queues.remove(0)
    }

    fn delivery(exchange: &str, key: &str, properties: BasicProperties) -> Delivery {
        let mut delivery = Delivery::mock(1, exchange.into(), key.into(), false, b"{}".to_vec());
        delivery.properties = properties;
        delivery
    }

    fn received(delivery: Delivery, queue: &str) -> Original {
        Original::new(delivery, queue).1
    }

    fn headers(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    #[test]
    fn headers_replace_missing_properties() {
        // python-cqrs's Protobuf frame.
        let properties = headers(&[
            ("event_name", AMQPValue::LongString("UserJoined".into())),
            ("message_id", AMQPValue::LongString("0a".into())),
            ("message_key", AMQPValue::LongString("7".into())),
            ("count", AMQPValue::LongUInt(7)),
            ("fresh", AMQPValue::Boolean(true)),
            ("ratio", AMQPValue::Double(0.5)),
            ("share", AMQPValue::Float(0.1)),
            ("bytes", AMQPValue::LongString(vec![0xff].into())),
        ]);
        let view = received(delivery("e", "t", properties), "t.g").view(&queue(), true);
        assert_eq!((view.name.as_deref(), view.id.as_deref()), (Some("UserJoined"), Some("0a")));
        assert_eq!((view.key.as_deref(), view.redelivered), (Some(&b"7"[..]), true));
        assert_eq!(
            (view.headers.get("count"), view.headers.get("fresh")),
            (Some("7"), Some("true"))
        );
        assert_eq!(
            (view.headers.get("ratio"), view.headers.get("share")),
            (Some("0.5"), Some("0.1"))
        );
        assert_eq!(view.headers.get("bytes"), None);
        assert_eq!(view.headers.get_bytes("bytes"), Some(&[0xff][..]));
        let properties = BasicProperties::default()
            .with_type("A".into())
            .with_message_id("1".into())
            .with_correlation_id("c".into())
            .with_timestamp(9);
        let view = received(delivery("e", "other", properties), "t.g").view(&queue(), false);
        assert_eq!((view.name.as_deref(), view.id.as_deref()), (Some("A"), Some("1")));
        assert_eq!((&*view.topic, view.headers.correlation_id()), ("other", Some("c")));
        assert_eq!(view.timestamp, Some(UNIX_EPOCH + Duration::from_secs(9)));
    }

    #[test]
    fn only_our_copies_restore_the_routing() {
        let original = received(delivery("e", "t", BasicProperties::default()), "t.g");
        let properties = copy_properties::retry(&original, &RetryState::default());
        let from = |exchange, key| {
            let copy = received(delivery(exchange, key, properties.clone()), "t.g");
            (copy.exchange.to_string(), copy.routing_key.to_string())
        };
        assert_eq!(from("", "t.g"), ("e".into(), "t".into()));
        let copy = received(delivery("", "t.g", properties.clone()), "t.g");
        assert!(copy.view(&queue(), false).headers.is_empty());
        // Published by another client that copied the headers.
        assert_eq!(from("e", "u"), ("e".into(), "u".into()));
    }
}
