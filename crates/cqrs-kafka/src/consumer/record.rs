//! A fetched record, copied out of librdkafka once, and what the runtime sees of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use cqrs_core::RetryState;
use cqrs_core::consume::{Incoming, LogLimit, RETRY_HEADERS};
use cqrs_core::message::{ByteString, Headers, header};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};

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

/// A record in our hands. Cloning shares its bytes.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) offset: i64,
    timestamp: Option<i64>,
    /// Key, body and headers, one after the other: see [`Copier`].
    content: Bytes,
    key_length: Option<usize>,
    body_length: Option<usize>,
    has_headers: bool,
    /// All headers, if `content` does not have all of them.
    unread: Option<Arc<Unread>>,
    /// How often it was given back.
    pub(super) drops: u32,
}

/// Headers that rdkafka cannot read, or that are too many to be read. Copies of the record have them all.
#[derive(Debug)]
struct Unread {
    all: OwnedHeaders,
    /// Bytes of those whose length is known.
    known: usize,
    /// About how many bytes all take in memory.
    size: usize,
    /// Why the record is not to be decoded.
    why: Option<Arc<str>>,
}

impl Unread {
    /// Of `count` headers, with `known` bytes in those that were read; `unknown` ones were not.
    fn new(
        all: OwnedHeaders,
        known: usize,
        count: usize,
        unknown: usize,
        why: Option<Arc<str>>,
    ) -> Self {
        let guess = unknown.saturating_mul(UNREADABLE).min(MAX_GUESS);
        let size = known.saturating_add(count * HEADER).saturating_add(guess);
        Self { all, known, size, why }
    }
}

/// Headers of a record that are read, at most.
const MAX_HEADERS: usize = 1_024;
/// Header names of a record that are not UTF-8, at most: each costs a panic of rdkafka, which is caught.
const MAX_UNREADABLE: usize = 8;
/// What a header that cannot be read counts in memory, in bytes: nobody knows its length.
const UNREADABLE: usize = 4 << 10;
/// What all that cannot be read count, at most.
const MAX_GUESS: usize = 8 << 20;
/// Headers that a retry copy adds, at most.
const OURS: usize = RETRY_HEADERS.len() + 5;
/// About what a header takes in memory beside its bytes.
const HEADER: usize = 64;

/// Copies records out of librdkafka. Small ones share buffers, so that most records allocate nothing.
///
/// A header is the lengths of name and value (`u32`, little endian; [`NULL`] for a value of null), then name
/// and value.
#[derive(Debug, Default)]
pub(super) struct Copier {
    buffer: BytesMut,
    /// The headers of the record that is being copied: reading them twice costs more.
    headers: Vec<u8>,
    /// Log lines about headers that cannot be read.
    log_limit: LogLimit,
}

/// Bytes of a shared buffer. A record that is kept for long keeps this many bytes of others with it.
const BUFFER: usize = 4 * 1024;
/// Longer records have their own.
const SHARED: usize = BUFFER / 4;
/// The length of a value that is null.
const NULL: u32 = u32::MAX;

impl Copier {
    pub(super) fn copy(&mut self, message: &BorrowedMessage<'_>) -> Record {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        let unread = read_headers(message, &mut headers, &self.log_limit).map(Arc::new);
        let (key, body) = (message.key(), message.payload());
        let size = key.map_or(0, <[u8]>::len) + body.map_or(0, <[u8]>::len) + headers.len();
        let mut own = BytesMut::new();
        let buffer = self.buffer_for(size, &mut own);
        buffer.extend_from_slice(key.unwrap_or_default());
        buffer.extend_from_slice(body.unwrap_or_default());
        buffer.extend_from_slice(&headers);
        let content = buffer.split().freeze();
        let has_headers = !headers.is_empty();
        if headers.capacity() <= BUFFER {
            self.headers = headers;
        }
        Record {
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            content,
            key_length: key.map(<[u8]>::len),
            body_length: body.map(<[u8]>::len),
            has_headers,
            unread,
            drops: 0,
        }
    }

    /// A buffer that has room for so many bytes: the shared one, or `own`, which has just them.
    fn buffer_for<'b>(&'b mut self, size: usize, own: &'b mut BytesMut) -> &'b mut BytesMut {
        if size > SHARED {
            *own = BytesMut::with_capacity(size);
            return own;
        }
        if self.buffer.capacity() < size {
            self.buffer = BytesMut::with_capacity(BUFFER);
        }
        &mut self.buffer
    }
}

/// Puts a record's headers into `buffer`, those that can be read. Headers that a retry copy adds are always read and
/// do not count against the limit.
fn read_headers(
    message: &BorrowedMessage<'_>,
    buffer: &mut Vec<u8>,
    log_limit: &LogLimit,
) -> Option<Unread> {
    let headers = message.headers()?;
    let count = headers.count();
    let (mut ours, mut others, mut bytes) = (Vec::new(), 0, 0);
    let (mut next, mut unreadable) = (0, 0);
    while next < count && unreadable <= MAX_UNREADABLE {
        // rdkafka panics on a name that is not UTF-8, and has no other way to read a header.
        let read = catch_unwind(AssertUnwindSafe(|| {
            while next < count {
                next += 1;
                let header = headers.get(next - 1);
                bytes += bytes_of(header.key, header.value);
                if is_ours(header.key) {
                    put_header(&mut ours, header.key, header.value);
                    continue;
                }
                others += 1;
                if others <= MAX_HEADERS {
                    put_header(buffer, header.key, header.value);
                }
            }
        }));
        unreadable += usize::from(read.is_err());
    }
    // A copy has them at the end.
    let end = next.max(count.saturating_sub(OURS));
    for index in end..count {
        let _unreadable = catch_unwind(AssertUnwindSafe(|| {
            let header = headers.get(index);
            if is_ours(header.key) {
                put_header(&mut ours, header.key, header.value);
            }
        }));
    }
    let why = if unreadable > MAX_UNREADABLE {
        Some("it has too many headers whose names are not UTF-8".into())
    } else if others > MAX_HEADERS {
        Some(format!("it has {others} headers, at most {MAX_HEADERS} are read").into())
    } else {
        None
    };
    if why.is_some() {
        buffer.clear();
    }
    buffer.extend_from_slice(&ours);
    if why.is_none() && unreadable == 0 {
        return None;
    }
    if let Some(left_out) = log_limit.line() {
        tracing::warn!(
            topic = message.topic(),
            partition = message.partition(),
            offset = message.offset(),
            headers = count,
            unreadable,
            reason = why.as_deref(),
            left_out,
            "not all headers of the record can be read; copies of it have them all"
        );
    }
    let unknown = unreadable + count - next;
    Some(Unread::new(headers.detach(), bytes, count, unknown, why))
}

/// Bytes of a header's name and value.
fn bytes_of(name: &str, value: Option<&[u8]>) -> usize {
    name.len() + value.map_or(0, <[u8]>::len)
}

fn put_header(buffer: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    // A record is shorter than 2 GiB.
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(NULL - 1);
    buffer.put_u32_le(length(name.as_bytes()));
    buffer.put_u32_le(value.map_or(NULL, length));
    buffer.extend_from_slice(name.as_bytes());
    buffer.extend_from_slice(value.unwrap_or_default());
}

/// A header as it stands in the log.
#[derive(Debug)]
pub(super) struct RawHeader<'r> {
    pub(super) name: &'r str,
    pub(super) value: Option<&'r [u8]>,
}

/// Headers that were copied.
struct RawHeaders<'r>(&'r [u8]);

impl<'r> Iterator for RawHeaders<'r> {
    type Item = RawHeader<'r>;

    fn next(&mut self) -> Option<Self::Item> {
        let (lengths, rest) = self.0.split_first_chunk::<8>()?;
        let [a, b, c, d, e, f, g, h] = *lengths;
        let (name, value) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let (name, rest) = rest.split_at_checked(name as usize)?;
        let is_null = value == NULL;
        let (value, rest) = rest.split_at_checked(if is_null { 0 } else { value as usize })?;
        self.0 = rest;
        let name = std::str::from_utf8(name).ok()?;
        Some(RawHeader { name, value: (!is_null).then_some(value) })
    }
}

impl Record {
    pub(super) fn key(&self) -> Option<Bytes> {
        self.key_length.map(|length| self.content.slice(..length))
    }

    pub(super) fn body(&self) -> Option<Bytes> {
        let start = self.key_length.unwrap_or_default();
        self.body_length.map(|length| self.content.slice(start..start + length))
    }

    fn headers(&self) -> RawHeaders<'_> {
        if !self.has_headers {
            return RawHeaders(&[]);
        }
        let start = self.key_length.unwrap_or_default() + self.body_length.unwrap_or_default();
        RawHeaders(&self.content[start..])
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
    pub(super) fn original_headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        self.headers().filter(|header| !is_ours(header.name))
    }

    /// Headers of a copy: the original ones, byte for byte, then `added` ones, which replace earlier ones of
    /// their names.
    pub(super) fn headers_of_copy(&self, added: &[(&str, String)]) -> Option<OwnedHeaders> {
        let is_replaced = |key: &str| added.iter().any(|(name, _)| *name == key);
        let (mut headers, original) = match &self.unread {
            // None of them can be left out. Of several headers with one name the last one counts.
            Some(unread) => (unread.all.clone(), None),
            None => (OwnedHeaders::new(), Some(self.original_headers())),
        };
        for RawHeader { name: key, value } in original.into_iter().flatten() {
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
            // Some of them are in `content` too.
            Some(unread) => unread.known,
            None => self.headers().map(|RawHeader { name, value }| bytes_of(name, value)).sum(),
        };
        self.key_length.unwrap_or_default() + self.body_length.unwrap_or_default() + headers
    }

    /// Its bytes in memory, about.
    pub(super) fn size(&self) -> usize {
        self.content.len() + self.unread.as_ref().map_or(0, |unread| unread.size)
    }

    /// Text of a header; of several with one name, the last.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let last = self.headers().filter(|header| header.name == name).last()?;
        std::str::from_utf8(last.value?).ok()
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
        incoming.unreadable = self.unread.as_ref().and_then(|unread| unread.why.clone());
        if !self.has_headers {
            return incoming;
        }
        self.show_headers(&mut incoming);
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

    /// Shows the headers that can stand in [`Headers`], and the fields that they fill.
    fn show_headers(&self, incoming: &mut Incoming) {
        let mut pairs = Vec::new();
        for RawHeader { name, value } in self.original_headers() {
            let field = match name {
                header::MESSAGE_ID => Some(&mut incoming.id),
                header::EVENT_NAME => Some(&mut incoming.name),
                CONTENT_TYPE => Some(&mut incoming.content_type),
                _ => None,
            };
            let value = value.map(|value| self.content.slice_ref(value));
            if let Some(field) = field {
                *field = value.clone().and_then(|value| ByteString::try_from(value).ok());
            }
            let name = ByteString::try_from(self.content.slice_ref(name.as_bytes()));
            // An empty or overlong name is kept in the raw headers only.
            pairs.extend(name.ok().zip(value));
        }
        incoming.headers = Headers::from_pairs(pairs);
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

#[cfg(test)]
impl Record {
    pub(super) fn of(offset: i64, key: Option<&str>, headers: &[(&str, Option<&[u8]>)]) -> Self {
        let mut content = format!("{}body", key.unwrap_or_default()).into_bytes();
        headers.iter().for_each(|(name, value)| put_header(&mut content, name, *value));
        Self {
            offset,
            timestamp: Some(1_500),
            content: content.into(),
            key_length: key.map(str::len),
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
    fn small_records_share_a_buffer_and_large_ones_have_their_own() {
        let mut copier = Copier::default();
        let mut copy = |size: usize| {
            let mut own = BytesMut::new();
            let buffer = copier.buffer_for(size, &mut own);
            buffer.resize(size, 7);
            assert!(buffer.capacity() >= size);
            let capacity = buffer.capacity();
            (buffer.split().freeze(), capacity)
        };
        let (first, capacity) = copy(SHARED);
        assert_eq!(capacity, BUFFER);
        let (large, capacity) = copy(SHARED + 1);
        assert_eq!((large.len(), capacity), (SHARED + 1, SHARED + 1), "not a byte too many");
        let mut before = first.as_ptr_range().end;
        for left in (1..BUFFER / SHARED).rev() {
            let (next, capacity) = copy(SHARED);
            assert_eq!((next.as_ptr(), capacity), (before, left * SHARED), "right behind it");
            before = next.as_ptr_range().end;
        }
        assert_eq!(copy(1).1, BUFFER, "a new one when it is full");
        assert_eq!(copy(0).0.len(), 0);
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
    fn unread_headers_count_in_memory_not_in_a_copy() {
        let mut record = Record::of(7, Some("key"), &[]);
        record.unread = Some(Arc::new(Unread::new(OwnedHeaders::new(), 100, 17_000, 17_000, None)));
        assert_eq!(record.known_size(), 107);
        let size = record.size();
        assert!((17_000 * HEADER..16 << 20).contains(&size), "{size}");
        record.unread = Some(Arc::new(Unread::new(OwnedHeaders::new(), 70 << 20, 3, 1, None)));
        assert_eq!(record.known_size(), (70 << 20) + 7, "what is known is not capped");
        let mut record = Record::of(7, None, &[("a", Some(b"1"))]);
        assert_eq!(record.known_size(), 6);
        record.unread = Some(Arc::new(Unread::new(OwnedHeaders::new(), 2, 2, 1, None)));
        assert_eq!(record.known_size(), 6, "what was read does not count twice");
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
