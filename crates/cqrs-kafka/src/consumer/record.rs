//! A fetched record, and its form as an incoming message. Made by the [`copier`](super::copier), owned by queues,
//! source and settlements.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cqrs_core::consume::support::{PackedHeaders, PackedPairs};
use cqrs_core::consume::{Incoming, RETRY_HEADERS, RetryState};
use cqrs_core::message::{ByteString, Headers, header};
use rdkafka::message::{Header, Headers as _, OwnedHeaders};

use super::retry_headers::{
    DUE, ORIGINAL_OFFSET, ORIGINAL_PARTITION, ORIGINAL_TIMESTAMP, ORIGINAL_TOPIC, is_retry_header,
};

/// FastStream's name of the header.
const CONTENT_TYPE: &str = "content-type";

/// Clones share the bytes.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) offset: i64,
    /// In milliseconds since 1970.
    pub(super) timestamp: Option<i64>,
    /// Key, body and headers, one after the other.
    pub(super) content: Bytes,
    pub(super) key_length: Option<u32>,
    pub(super) body_length: Option<u32>,
    pub(super) has_headers: bool,
    /// All headers, if `content` does not have all of them.
    pub(super) unread: Option<Arc<Unread>>,
    /// The number of times its delivery was dropped.
    pub(super) drops: u32,
}

/// The headers of a record of which rdkafka cannot read some, or which has too many. Copies of the record have them
/// all.
#[derive(Debug)]
pub(super) struct Unread {
    all: OwnedHeaders,
    /// Bytes of the headers whose length is known.
    known: usize,
    /// About the bytes of all headers in memory.
    size: usize,
    /// The reason why the record must not be decoded.
    reason: Option<Arc<str>>,
}

impl Unread {
    /// `count` headers, with `known` bytes in those that were read; `unknown` ones were not.
    pub(super) fn new(
        all: OwnedHeaders,
        known: usize,
        count: usize,
        unknown: usize,
        reason: Option<Arc<str>>,
    ) -> Self {
        let guess = unknown.saturating_mul(UNREADABLE).min(MAX_GUESS);
        let size = known.saturating_add(count * HEADER).saturating_add(guess);
        Self { all, known, size, reason }
    }
}

/// The bytes in memory counted for a header that cannot be read, whose length is unknown.
const UNREADABLE: usize = 4 << 10;
/// The largest count for all of them.
const MAX_GUESS: usize = 8 << 20;
/// About the bytes in memory of a header besides its name and value.
const HEADER: usize = 64;

impl Record {
    pub(super) fn key(&self) -> Option<Bytes> {
        self.key_length.map(|_| self.content.slice(..self.key_end()))
    }

    pub(super) fn body(&self) -> Option<Bytes> {
        self.body_length.map(|_| self.content.slice(self.key_end()..self.body_end()))
    }

    fn key_end(&self) -> usize {
        self.key_length.unwrap_or_default() as usize
    }

    fn body_end(&self) -> usize {
        self.key_end() + self.body_length.unwrap_or_default() as usize
    }

    fn headers(&self) -> PackedPairs<'_> {
        if !self.has_headers {
            return PackedPairs(&[]);
        }
        PackedPairs(&self.content[self.body_end()..])
    }

    fn timestamp(&self) -> Option<SystemTime> {
        let since = Duration::from_millis(u64::try_from(self.timestamp?).ok()?);
        Some(UNIX_EPOCH + since)
    }

    /// Its timestamp; of a retry copy, that of the record it was made from.
    pub(super) fn original_timestamp(&self) -> Option<SystemTime> {
        self.time(ORIGINAL_TIMESTAMP).or_else(|| self.timestamp())
    }

    /// The headers without those that a retry copy adds.
    pub(super) fn original_headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.headers().filter(|(name, _)| !is_retry_header(name))
    }

    /// Headers of a copy: the original ones, byte for byte, then `added` ones, which replace earlier ones of
    /// their names.
    pub(super) fn headers_of_copy(&self, added: &[(&str, String)]) -> Option<OwnedHeaders> {
        let is_replaced = |key: &str| added.iter().any(|(name, _)| *name == key);
        let (mut headers, original) = match &self.unread {
            // No header can be left out here. Of several headers of one name the last one counts.
            Some(unread) => (unread.all.clone(), None),
            None => (OwnedHeaders::new(), Some(self.original_headers())),
        };
        for (key, value) in original.into_iter().flatten() {
            if !is_replaced(key) {
                headers = headers.insert(Header { key, value });
            }
        }
        for (key, value) in added {
            headers = headers.insert(Header { key, value: Some(value.as_str()) });
        }
        (headers.count() > 0).then_some(headers)
    }

    /// Bytes of key, body and headers, without those of headers that cannot be read.
    pub(super) fn known_size(&self) -> usize {
        let headers = match &self.unread {
            // `content` has some of them too.
            Some(unread) => unread.known,
            None => self.headers().map(|(name, value)| header_len(name, value)).sum(),
        };
        self.body_end() + headers
    }

    /// About its bytes in memory.
    pub(super) fn size(&self) -> usize {
        self.content.len() + self.unread.as_ref().map_or(0, |unread| unread.size)
    }

    /// The text of a header; of several with one name, the last.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let (_, last) = self.headers().filter(|(known, _)| *known == name).last()?;
        std::str::from_utf8(last?).ok()
    }

    /// The time at which a retry copy is due.
    pub(super) fn due(&self) -> Option<SystemTime> {
        self.time(DUE)
    }

    fn time(&self, name: &str) -> Option<SystemTime> {
        Some(UNIX_EPOCH + Duration::from_millis(self.text(name)?.parse().ok()?))
    }

    /// Fills in a message that has only the record's topic; of a retry copy, as the record that it was made from.
    pub(super) fn fill(&self, incoming: &mut Incoming, partition: i32, is_copy: bool) {
        incoming.partition = Some(partition);
        incoming.offset = Some(self.offset);
        incoming.key = self.key();
        incoming.body = self.body();
        incoming.timestamp = self.timestamp();
        incoming.redelivered = self.drops > 0 || is_copy;
        incoming.unreadable = self.unread.as_ref().and_then(|unread| unread.reason.clone());
        if !self.has_headers {
            return;
        }
        self.put_headers(incoming);
        if is_copy {
            if let Some(original) = self.text(ORIGINAL_TOPIC) {
                incoming.topic = original.into();
            }
            let number = |name| self.text(name).and_then(|text| text.parse::<i64>().ok());
            incoming.partition = number(ORIGINAL_PARTITION).and_then(|n| n.try_into().ok());
            incoming.offset = number(ORIGINAL_OFFSET);
            incoming.timestamp = self.original_timestamp();
        }
    }

    /// Puts the headers that are legal in [`Headers`] into the message, and the fields that they fill.
    fn put_headers(&self, incoming: &mut Incoming) {
        let buffer = self.content.slice(self.body_end()..);
        let headers = PackedHeaders::read(buffer, |header| {
            match header.name {
                header::MESSAGE_ID => incoming.id = Some(header.share_value()),
                header::EVENT_NAME => incoming.name = Some(header.share_value()),
                CONTENT_TYPE => incoming.content_type = Some(header.share_value()),
                name => return !is_retry_header(name),
            }
            true
        });
        match headers {
            Some(headers) => incoming.headers = headers.into(),
            None => self.put_pairs(incoming),
        }
    }

    /// The same for any headers.
    fn put_pairs(&self, incoming: &mut Incoming) {
        let Incoming { id, name: event_name, content_type, .. } = &mut *incoming;
        let pairs = self.original_headers().filter_map(|(name, value)| {
            let value = value.map(|value| self.content.slice_ref(value));
            let field = match name {
                header::MESSAGE_ID => Some((header::MESSAGE_ID, &mut *id)),
                header::EVENT_NAME => Some((header::EVENT_NAME, &mut *event_name)),
                CONTENT_TYPE => Some((CONTENT_TYPE, &mut *content_type)),
                _ => None,
            };
            let name = match field {
                Some((name, field)) => {
                    *field = value.clone().and_then(|value| ByteString::try_from(value).ok());
                    ByteString::from_static(name)
                }
                None => ByteString::try_from(self.content.slice_ref(name.as_bytes())).ok()?,
            };
            // An empty or overlong name is left out here; copies of the record keep it.
            Some((name, value?))
        });
        incoming.headers = Headers::from_pairs(pairs);
    }

    /// The earlier attempts, from the headers of a retry copy.
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

/// The length of a header's name and value together.
pub(super) fn header_len(name: &str, value: Option<&[u8]>) -> usize {
    name.len() + value.map_or(0, <[u8]>::len)
}

#[cfg(test)]
impl Record {
    pub(super) fn of(offset: i64, key: Option<&str>, headers: &[(&str, Option<&[u8]>)]) -> Self {
        let mut content = format!("{}body", key.unwrap_or_default()).into_bytes();
        headers.iter().for_each(|(name, value)| {
            cqrs_core::consume::support::put_packed(&mut content, name, *value)
        });
        Self {
            offset,
            timestamp: Some(1_500),
            content: content.into(),
            key_length: key.map(|key| u32::try_from(key.len()).unwrap()),
            body_length: Some(4),
            has_headers: !headers.is_empty(),
            unread: None,
            drops: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Record {
        fn to_incoming(&self, topic: &Arc<str>, partition: i32, is_copy: bool) -> Incoming {
            let mut incoming = Incoming::new(topic, Bytes::new());
            self.fill(&mut incoming, partition, is_copy);
            incoming
        }
    }

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
    fn other_headers_do_not_change_the_fields() {
        let texts: [(&str, Option<&[u8]>); 4] = [
            ("message_id", Some(b"m-1")),
            ("event_name", Some(b"Created")),
            ("content-type", Some(b"text/plain")),
            ("a", Some(b"1")),
        ];
        let read = |more: &[(&str, Option<&[u8]>)]| {
            Record::of(7, None, &[&texts, more].concat()).to_incoming(&"t".into(), 3, false)
        };
        let plain = read(&[]);
        assert_eq!(plain.headers.iter().len(), 4);
        assert_eq!(plain.id.as_deref(), Some("m-1"));
        assert_eq!(plain.name.as_deref(), Some("Created"));
        assert_eq!(plain.content_type.as_deref(), Some("text/plain"));
        for ignored in [("null", None), ("", Some(&b"no name"[..])), (RETRY_HEADERS[0], Some(b"4"))]
        {
            assert_eq!(read(&[ignored]), plain, "{ignored:?}");
        }
        let mut binary = read(&[("binary", Some(b"\xff"))]);
        assert!(binary.headers.remove("binary"));
        assert_eq!(binary, plain);
    }

    #[test]
    fn last_header_of_a_name_counts() {
        let both = [("message_id", Some(&b"m-1"[..])), ("message_id", Some(&b"m-2"[..]))];
        let incoming = Record::of(7, None, &both).to_incoming(&"t".into(), 3, false);
        assert_eq!(incoming.id.as_deref(), Some("m-2"));
        assert_eq!(incoming.headers.iter().collect::<Vec<_>>(), [("message_id", "m-2")]);
        for unread in [None, Some(&b"\xff"[..])] {
            let both = [("message_id", Some(&b"m-1"[..])), ("message_id", unread)];
            let incoming = Record::of(7, None, &both).to_incoming(&"t".into(), 3, false);
            assert_eq!(incoming.id, None, "{unread:?}");
        }
    }

    #[test]
    fn unread_headers_count_in_memory_not_in_a_copy() {
        let mut record = Record::of(7, Some("key"), &[]);
        record.unread = Some(Arc::new(Unread::new(OwnedHeaders::new(), 100, 17_000, 17_000, None)));
        assert_eq!(record.known_size(), 107);
        let size = record.size();
        assert!((17_000 * HEADER..16 << 20).contains(&size), "{size}");
        record.unread = Some(Arc::new(Unread::new(OwnedHeaders::new(), 70 << 20, 3, 1, None)));
        assert_eq!(record.known_size(), (70 << 20) + 7, "known bytes have no limit");
        let mut record = Record::of(7, None, &[("a", Some(b"1"))]);
        assert_eq!(record.known_size(), 6);
        record.unread = Some(Arc::new(Unread::new(OwnedHeaders::new(), 2, 2, 1, None)));
        assert_eq!(record.known_size(), 6, "read headers do not count twice");
    }

    #[test]
    fn retry_copy_has_the_fields_of_its_original() {
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
