//! The event of all benchmarks and its encoding; the other frameworks' program reads the same file.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use cqrs_core::message::content_type;
use cqrs_core::{Event as _, Message, NotificationEvent};
use cqrs_protobuf::ProtobufSerializer;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) const KEYS: usize = 1_000;
/// Digits of a message's number, at the beginning of its filling.
const DIGITS: usize = 10;

/// The form of the bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Codec {
    /// The same bytes each time, for publishing: what the broker costs.
    Bytes,
    /// An event in JSON, encoded anew each time.
    Json,
    /// An event in Protobuf, encoded anew each time, with the headers that name it.
    Protobuf,
}

/// An event that is JSON or Protobuf.
#[derive(Clone, PartialEq, Serialize, Deserialize, prost::Message, cqrs_macros::Notification)]
#[cqrs(crate = "cqrs_core", topic = "bench")]
pub(crate) struct Benched {
    #[prost(string, tag = "1")]
    pub(crate) user_id: String,
    #[prost(string, tag = "2")]
    filling: String,
}

impl Benched {
    /// The number that [`Template::event`] was given.
    pub(crate) fn number(&self) -> usize {
        let digits = self.filling.get(..DIGITS);
        digits.and_then(|digits| digits.parse().ok()).expect("a filling that begins with digits")
    }
}

/// What is published: events of one codec whose bodies have one size.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    codec: Codec,
    rest: String,
    body: Bytes,
}

/// What the raw client of a broker gets to send.
pub(crate) struct Raw {
    /// The event's id, if there is an event.
    pub(crate) id: Option<Uuid>,
    pub(crate) body: Bytes,
}

impl Template {
    /// Bodies of `size` bytes, or the least that the codec has.
    pub(crate) fn new(codec: Codec, size: usize) -> Self {
        let bare = Self { codec, rest: String::new(), body: Bytes::from(vec![b'x'; size]) };
        let with = |bytes: usize| Self { rest: "x".repeat(bytes), ..bare.clone() };
        let mut template = with(size.saturating_sub(bare.size()));
        // The length of a long text takes more bytes in Protobuf.
        template = with(template.rest.len() - template.rest.len().min(template.excess(size)));
        template
    }

    fn excess(&self, size: usize) -> usize {
        self.size().saturating_sub(size)
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// Set if a message has its event's name and id in headers, as those that are no JSON.
    pub(crate) fn names_in_headers(&self) -> bool {
        self.codec == Codec::Protobuf
    }

    /// Bytes of a body.
    pub(crate) fn size(&self) -> usize {
        self.raw(0).body.len()
    }

    /// The key of the `number`th message.
    pub(crate) fn key(number: usize) -> String {
        format!("{:04}", number % KEYS)
    }

    /// The `number`th event.
    pub(crate) fn event(&self, number: usize) -> NotificationEvent<Benched> {
        let filling = format!("{number:0DIGITS$}{}", self.rest);
        NotificationEvent::new(Benched { user_id: Self::key(number), filling })
    }

    /// The `number`th message for `topic`, as this framework publishes it.
    pub(crate) fn message(&self, topic: &Arc<str>, number: usize) -> Message {
        let message = match self.codec {
            Codec::Bytes => Message::new(Arc::clone(topic), self.body.clone()),
            Codec::Json => {
                let event = self.event(number);
                let mut message = event.to_message().expect("JSON");
                message.topic = Arc::clone(topic);
                message
            }
            Codec::Protobuf => {
                let event = self.event(number);
                let encoded = cqrs_core::codec::Serializer::serialize(&ProtobufSerializer, &event);
                Message::new(Arc::clone(topic), encoded.expect("Protobuf").body)
                    .with_id(event.event_id)
                    .with_name(Benched::NAME)
                    .with_content_type(content_type::PROTOBUF)
            }
        };
        message.with_key(Self::key(number))
    }

    /// The same for a raw client.
    pub(crate) fn raw(&self, number: usize) -> Raw {
        if self.codec == Codec::Bytes {
            return Raw { id: None, body: self.body.clone() };
        }
        let event = self.event(number);
        let body = match self.codec {
            Codec::Protobuf => event.payload.encode_to_vec(),
            _ => serde_json::to_vec(&event).expect("JSON"),
        };
        Raw { id: Some(event.event_id), body: body.into() }
    }

    /// The raw side's decoding: the same bytes into the same type.
    pub(crate) fn decode(&self, body: &[u8]) -> Benched {
        match self.codec {
            Codec::Protobuf => Benched::decode(body).expect("Protobuf"),
            _ => {
                let event: NotificationEvent<Benched> =
                    serde_json::from_slice(body).expect("an event");
                event.payload
            }
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codec = match self.codec {
            Codec::Bytes => "bytes",
            Codec::Json => "JSON",
            Codec::Protobuf => "Protobuf",
        };
        write!(to, "{codec}, {} B", self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_size_and_the_number() {
        for codec in [Codec::Json, Codec::Protobuf] {
            for size in [256, 1_000, 100_000] {
                let template = Template::new(codec, size);
                let raw = template.raw(1_234_567);
                assert_eq!(raw.body.len(), size, "{codec:?}");
                assert_eq!(template.message(&"bench".into(), 7).body.len(), size);
                assert_eq!(template.decode(&raw.body).number(), 1_234_567);
                assert_eq!(template.decode(&raw.body).user_id, "0567");
            }
        }
        assert_eq!(Template::new(Codec::Protobuf, 100).size(), 100);
        assert_eq!(Template::new(Codec::Bytes, 100).size(), 100);
        assert!((100..200).contains(&Template::new(Codec::Json, 100).size()));
    }
}
