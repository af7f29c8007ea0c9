//! A fetched record, copied out of librdkafka once, and what the runtime sees of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cqrs_core::RetryState;
use cqrs_core::consume::{Incoming, RETRY_HEADERS};
use cqrs_core::message::{Headers, header};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

/// When the copy in a retry topic may be handed out: milliseconds since 1970.
pub(super) const DUE: &str = "cqrs-retry-due";
/// The topic a retry copy first came from.
pub(super) const ORIGINAL_TOPIC: &str = "cqrs-retry-topic";
/// The partition there.
pub(super) const ORIGINAL_PARTITION: &str = "cqrs-retry-partition";
/// The offset there.
pub(super) const ORIGINAL_OFFSET: &str = "cqrs-retry-offset";

/// Its timestamp there: milliseconds since 1970.
pub(super) const ORIGINAL_TIMESTAMP: &str = "cqrs-retry-timestamp";

/// FastStream's name of it.
const CONTENT_TYPE: &str = "content-type";

/// A header as it stands in the log.
pub(super) type RawHeader = (Box<str>, Option<Box<[u8]>>);

/// A record in our hands. Cloning shares its bytes.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) offset: i64,
    timestamp: Option<i64>,
    /// Key and body, one after the other.
    content: Bytes,
    key_length: Option<usize>,
    has_body: bool,
    headers: Option<Arc<[RawHeader]>>,
    /// How often it was given back.
    pub(super) drops: u32,
}

impl Record {
    pub(super) fn copy(message: &BorrowedMessage<'_>) -> Self {
        let (key, body) = (message.key(), message.payload());
        let size = key.map_or(0, <[u8]>::len) + body.map_or(0, <[u8]>::len);
        let mut content = Vec::with_capacity(size);
        content.extend_from_slice(key.unwrap_or_default());
        content.extend_from_slice(body.unwrap_or_default());
        Self {
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            content: content.into(),
            key_length: key.map(<[u8]>::len),
            has_body: body.is_some(),
            headers: copy_headers(message),
            drops: 0,
        }
    }

    pub(super) fn key(&self) -> Option<Bytes> {
        self.key_length.map(|length| self.content.slice(..length))
    }

    pub(super) fn body(&self) -> Option<Bytes> {
        self.has_body.then(|| match self.key_length {
            None | Some(0) => self.content.clone(),
            Some(length) => self.content.slice(length..),
        })
    }

    fn timestamp(&self) -> Option<SystemTime> {
        let since = Duration::from_millis(u64::try_from(self.timestamp?).ok()?);
        Some(UNIX_EPOCH + since)
    }

    /// Its timestamp; of a retry copy, that of the record it was made from.
    pub(super) fn original_timestamp(&self) -> Option<SystemTime> {
        self.time(ORIGINAL_TIMESTAMP).or_else(|| self.timestamp())
    }

    /// The headers as they came, without those that a retry copy adds.
    pub(super) fn original_headers(&self) -> impl Iterator<Item = &RawHeader> {
        self.headers.iter().flat_map(|headers| headers.iter()).filter(|(name, _)| !is_ours(name))
    }

    /// What it holds in memory.
    pub(super) fn size(&self) -> usize {
        let headers = self.headers.iter().flat_map(|headers| headers.iter());
        let headers = headers
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, |value| value.len()) + 32);
        self.content.len() + headers.sum::<usize>()
    }

    /// Text of a header; of several with one name, the last.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.as_deref()?.iter().rev();
        let (_, value) = headers.find(|(known, _)| &**known == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    /// When a retry copy may be handed out.
    pub(super) fn due(&self) -> Option<SystemTime> {
        self.time(DUE)
    }

    fn time(&self, name: &str) -> Option<SystemTime> {
        Some(UNIX_EPOCH + Duration::from_millis(self.text(name)?.parse().ok()?))
    }

    /// What the runtime sees; of a retry copy, that of the record it was made from.
    pub(super) fn to_incoming(&self, topic: &Arc<str>, partition: i32, is_copy: bool) -> Incoming {
        let mut incoming = Incoming::new(Arc::clone(topic), Bytes::new());
        incoming.partition = Some(partition);
        incoming.offset = Some(self.offset);
        incoming.key = self.key();
        incoming.body = self.body();
        incoming.timestamp = self.timestamp();
        incoming.redelivered = self.drops > 0 || is_copy;
        if self.headers.is_none() {
            return incoming;
        }
        let text = |name: &str| self.text(name).map(Arc::from);
        incoming.id = text(header::MESSAGE_ID);
        incoming.name = text(header::EVENT_NAME);
        incoming.content_type = text(CONTENT_TYPE);
        incoming.headers = self.shown_headers();
        if is_copy {
            if let Some(original) = self.text(ORIGINAL_TOPIC) {
                incoming.topic = original.into();
            }
            let number = |name| self.text(name).and_then(|text| text.parse::<i64>().ok());
            incoming.partition = number(ORIGINAL_PARTITION).and_then(|n| n.try_into().ok());
            incoming.offset = number(ORIGINAL_OFFSET);
            incoming.timestamp = self.original_timestamp();
        }
        incoming
    }

    /// The headers that can stand in [`Headers`].
    fn shown_headers(&self) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in self.original_headers() {
            let Some(value) = value.as_deref() else { continue };
            // An empty or overlong name is kept in the raw headers only.
            let _ = match std::str::from_utf8(value) {
                Ok(text) => headers.insert(&**name, text),
                Err(_) => headers.insert_bytes(&**name, Bytes::copy_from_slice(value)),
            };
        }
        headers
    }

    /// What a retry copy says of earlier attempts.
    pub(super) fn retry_state(&self) -> RetryState {
        let mut headers = Headers::new();
        for name in RETRY_HEADERS {
            if let Some(text) = self.text(name) {
                let _ = headers.insert(name, text);
            }
        }
        RetryState::from_headers(&headers)
    }
}

/// Whether a retry copy adds the header.
fn is_ours(name: &str) -> bool {
    name.starts_with("cqrs-retry-")
        && (RETRY_HEADERS.contains(&name)
            || [DUE, ORIGINAL_TOPIC, ORIGINAL_PARTITION, ORIGINAL_OFFSET, ORIGINAL_TIMESTAMP]
                .contains(&name))
}

fn copy_headers(message: &BorrowedMessage<'_>) -> Option<Arc<[RawHeader]>> {
    let headers = message.headers()?;
    // rdkafka panics on a name that is not UTF-8. One such record must not end the thread.
    let copied = catch_unwind(AssertUnwindSafe(|| {
        headers.iter().map(|header| (header.key.into(), header.value.map(Into::into))).collect()
    }));
    if copied.is_err() {
        tracing::error!(
            topic = message.topic(),
            partition = message.partition(),
            offset = message.offset(),
            "a header's name is not UTF-8; the record's headers cannot be read"
        );
    }
    copied.ok()
}

#[cfg(test)]
impl Record {
    pub(super) fn of(offset: i64, key: Option<&str>, headers: &[(&str, Option<&[u8]>)]) -> Self {
        let content = format!("{}body", key.unwrap_or_default());
        Self {
            offset,
            timestamp: Some(1_500),
            content: content.into(),
            key_length: key.map(str::len),
            has_body: true,
            headers: (!headers.is_empty()).then(|| {
                let owned =
                    |(name, value): &(&str, Option<&[u8]>)| ((*name).into(), value.map(Into::into));
                headers.iter().map(owned).collect()
            }),
            drops: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_body_share_one_copy() {
        let record = Record::of(7, Some("key"), &[]);
        assert_eq!(
            (&*record.key().unwrap(), &*record.body().unwrap()),
            (&b"key"[..], &b"body"[..])
        );
        assert_eq!(record.size(), 7);
        let keyless = Record::of(7, None, &[]);
        assert_eq!((keyless.key(), &*keyless.body().unwrap()), (None, &b"body"[..]));
        assert_eq!(keyless.timestamp(), Some(UNIX_EPOCH + Duration::from_millis(1_500)));
    }

    #[test]
    fn headers_fill_the_fields() {
        let record = Record::of(
            7,
            None,
            &[
                ("message_id", Some(b"m-1")),
                ("event_name", Some(b"Created")),
                ("content-type", Some(b"text/plain")),
                ("binary", Some(b"\xff")),
                ("null", None),
                ("", Some(b"no name")),
            ],
        );
        let incoming = record.to_incoming(&"t".into(), 3, false);
        assert_eq!(incoming.id.as_deref(), Some("m-1"));
        assert_eq!(incoming.name.as_deref(), Some("Created"));
        assert_eq!(incoming.content_type.as_deref(), Some("text/plain"));
        assert_eq!(incoming.headers.iter().len(), 3);
        assert_eq!(incoming.headers.get_bytes("binary"), Some(&b"\xff"[..]));
        assert_eq!(incoming.headers.get_bytes("null"), None);
        assert_eq!((incoming.partition, incoming.offset), (Some(3), Some(7)));
        assert_eq!(record.original_headers().count(), 6);
    }

    #[test]
    fn a_retry_copy_looks_like_what_it_was_made_from() {
        let record = Record::of(
            7,
            None,
            &[
                ("a", Some(b"1")),
                (RETRY_HEADERS[0], Some(b"4")),
                (DUE, Some(b"1700000000123")),
                (ORIGINAL_TOPIC, Some(b"orders")),
                (ORIGINAL_PARTITION, Some(b"2")),
                (ORIGINAL_OFFSET, Some(b"99")),
            ],
        );
        let incoming = record.to_incoming(&"orders.g.retry.1s".into(), 0, true);
        assert_eq!(&*incoming.topic, "orders");
        assert_eq!((incoming.partition, incoming.offset), (Some(2), Some(99)));
        assert_eq!(incoming.headers.iter().collect::<Vec<_>>(), [("a", "1")]);
        assert_eq!(record.retry_state().attempts, 4);
        let due = record.due().unwrap().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(due.as_millis(), 1_700_000_000_123);
    }
}
