//! The headers of a message, and the names that the framework uses.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;

use super::packed::PackedHeaders;
use super::trace_context::{InvalidTraceContext, TraceContext};

/// Names of the headers this framework writes and reads, the same on every broker.
pub mod header {
    /// The id that all messages caused by one request share. FastStream's name.
    pub const CORRELATION_ID: &str = "correlation_id";
    /// [W3C Trace Context](https://www.w3.org/TR/trace-context/), the caller's span.
    pub const TRACEPARENT: &str = "traceparent";
    /// [W3C Trace Context](https://www.w3.org/TR/trace-context/), vendor data.
    pub const TRACESTATE: &str = "tracestate";
    /// The event's name, unless the body is the whole event in JSON. python-cqrs's name.
    pub const EVENT_NAME: &str = "event_name";
    /// The event's id, hyphenated, unless the body is the whole event in JSON. python-cqrs's name.
    pub const MESSAGE_ID: &str = "message_id";
    /// The message's key, on brokers whose frame has no slot for one (RabbitMQ).
    pub const KEY: &str = "message_key";
}

/// Headers in order of insertion, first those with text, then those with bytes. A name occurs once. Names
/// and values may share the buffer of a received message.
///
/// This framework writes text only, because FastStream reads every header as UTF-8 and fails on any other
/// (seen with FastStream 0.7.8). Values of bytes are for formats that need them, such as the schema id that
/// newer clients of a schema registry put into a header.
///
/// `Debug` shows names only: values may be personal data.
#[derive(Clone)]
pub struct Headers {
    text: Texts,
    /// Values that are not text. Boxed, because few messages have one.
    binary: Option<Box<Named<Bytes>>>,
}

#[derive(Clone)]
enum Texts {
    List(Named<ByteString>),
    /// As they were received. Becomes a list before it is changed.
    Packed(PackedHeaders),
}

/// The number of headers up to which a linear search is faster than an index.
const FEW: usize = 32;

type Named<T> = Vec<(ByteString, T)>;

/// A header that some broker cannot carry.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidHeader {
    /// The name is empty.
    #[error("a header name is empty")]
    EmptyName,
    /// The name is longer than AMQP's short string allows (AMQP 0-9-1, 4.2.5.3).
    #[error("header name of {length} bytes, at most 255 are allowed")]
    NameTooLong {
        /// Bytes of the refused name.
        length: usize,
    },
}

crate::error_debug!(InvalidHeader);

impl Headers {
    /// No headers. Does not allocate.
    pub const fn new() -> Self {
        Self { text: Texts::List(Vec::new()), binary: None }
    }

    /// Sets `name`, replacing an earlier value of the same name.
    ///
    /// # Errors
    /// If the name is empty or longer than 255 bytes; nothing is changed then.
    pub fn insert(
        &mut self,
        name: impl Into<ByteString>,
        value: impl Into<ByteString>,
    ) -> Result<(), InvalidHeader> {
        let name = valid(name.into())?;
        self.set(name, value.into());
        Ok(())
    }

    /// Sets `name` to bytes, replacing an earlier value of the same name. Bytes that are UTF-8 become text:
    /// a broker does not distinguish the two.
    ///
    /// # Errors
    /// If the name is empty or longer than 255 bytes; nothing is changed then.
    pub fn insert_bytes(
        &mut self,
        name: impl Into<ByteString>,
        value: impl Into<Bytes>,
    ) -> Result<(), InvalidHeader> {
        let (name, value) = (valid(name.into())?, value.into());
        if let Ok(text) = ByteString::try_from(value.clone()) {
            self.set(name, text);
            return Ok(());
        }
        self.list().retain(|(known, _)| *known != name);
        let binary = self.binary.get_or_insert_default();
        match binary.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, slot)) => *slot = value,
            None => binary.push((name, value)),
        }
        Ok(())
    }

    /// As [`insert_bytes`](Self::insert_bytes) for each pair, in linear time: for received headers, whose
    /// number is not bounded. Names that are empty or longer than 255 bytes are left out.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (ByteString, Bytes)>) -> Self {
        let (mut pairs, mut few) = (pairs.into_iter(), Self::new());
        for (name, value) in pairs.by_ref().take(FEW) {
            let _invalid = few.insert_bytes(name, value);
        }
        let Some(next) = pairs.next() else { return few };
        let text = std::mem::take(few.list());
        let text = text.into_iter().map(|(name, value)| (name, value.into_bytes()));
        let binary = few.binary.map(|binary| *binary).unwrap_or_default();
        let (mut places, mut unique) = (HashMap::<ByteString, usize>::new(), Named::new());
        for (name, value) in text.chain(binary).chain([next]).chain(pairs) {
            let Ok(name) = valid(name) else { continue };
            match places.entry(name) {
                Entry::Occupied(place) => unique[*place.get()].1 = value,
                Entry::Vacant(place) => {
                    unique.push((place.key().clone(), value));
                    place.insert(unique.len() - 1);
                }
            }
        }
        let (mut text, mut binary) = (Vec::with_capacity(unique.len()), Vec::new());
        for (name, value) in unique {
            match ByteString::try_from(value.clone()) {
                Ok(value) => text.push((name, value)),
                Err(_) => binary.push((name, value)),
            }
        }
        let text = Texts::List(text);
        Self { text, binary: (!binary.is_empty()).then(|| Box::new(binary)) }
    }

    /// The headers that are text, to be changed.
    fn list(&mut self) -> &mut Named<ByteString> {
        if let Texts::Packed(packed) = &self.text {
            let shared = |(name, value)| (packed.share(name), packed.share(value));
            self.text = Texts::List(packed.iter().map(shared).collect());
        }
        match &mut self.text {
            Texts::List(list) => list,
            Texts::Packed(_) => unreachable!("it is a list now"),
        }
    }

    fn set(&mut self, name: ByteString, value: ByteString) {
        match self.list().iter_mut().find(|(known, _)| **known == *name) {
            Some((_, slot)) => *slot = value,
            None => {
                self.remove_bytes(&name);
                self.list().push((name, value));
            }
        }
    }

    /// The text of `name`; `None` if it is missing or its value is not text. Names are case-sensitive, as
    /// on both brokers.
    pub fn get(&self, name: &str) -> Option<&str> {
        match &self.text {
            Texts::List(list) => {
                list.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
            }
            Texts::Packed(packed) => {
                packed.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
            }
        }
    }

    /// The bytes of `name`, text or not.
    pub fn get_bytes(&self, name: &str) -> Option<&[u8]> {
        let binary = || self.iter_bytes().find(|(known, _)| **known == *name);
        self.get(name).map(str::as_bytes).or_else(|| binary().map(|(_, value)| &**value))
    }

    /// Removes `name`. `false` if it was not there.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(at) = self.iter().position(|(known, _)| known == name) else {
            return self.remove_bytes(name);
        };
        self.list().remove(at);
        true
    }

    fn remove_bytes(&mut self, name: &str) -> bool {
        let Some(binary) = &mut self.binary else { return false };
        let Some(at) = binary.iter().position(|(known, _)| **known == *name) else { return false };
        binary.remove(at);
        // So that two values without such headers are equal.
        if binary.is_empty() {
            self.binary = None;
        }
        true
    }

    /// Names and values of the headers that are text, in order of insertion.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        let (list, packed) = match &self.text {
            Texts::List(list) => (&list[..], None),
            Texts::Packed(packed) => (&[][..], Some(packed.iter())),
        };
        let left = packed.clone().map_or(list.len(), Iterator::count);
        Iter { list: list.iter(), packed, left }
    }

    /// Names and values of the headers that are not text, in order of insertion.
    pub fn iter_bytes(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        let binary = self.binary.iter().flat_map(|binary| binary.iter());
        binary.map(|(name, value)| (&**name, value))
    }

    /// The number of headers.
    pub fn len(&self) -> usize {
        self.iter().len() + self.binary.as_ref().map_or(0, |binary| binary.len())
    }

    /// `true` if there are no headers.
    pub fn is_empty(&self) -> bool {
        let is_empty = match &self.text {
            Texts::List(list) => list.is_empty(),
            Texts::Packed(packed) => packed.iter().next().is_none(),
        };
        is_empty && self.binary.is_none()
    }

    /// Bytes of all names and values.
    pub fn size(&self) -> usize {
        let text: usize = match &self.text {
            Texts::List(list) => list.iter().map(|(name, value)| name.len() + value.len()).sum(),
            Texts::Packed(packed) => {
                packed.iter().map(|(name, value)| name.len() + value.len()).sum()
            }
        };
        let binary = self.iter_bytes().map(|(name, value)| name.len() + value.len());
        text + binary.sum::<usize>()
    }

    /// The id of the request that caused this message.
    pub fn correlation_id(&self) -> Option<&str> {
        self.get(header::CORRELATION_ID)
    }

    /// Sets the correlation id.
    pub fn set_correlation_id(&mut self, id: impl Into<ByteString>) {
        self.set(ByteString::from_static(header::CORRELATION_ID), id.into());
    }

    /// The sender's span; `None` without a `traceparent` header.
    ///
    /// # Errors
    /// If `traceparent` is not of the W3C form. The standard's rule is to continue without it.
    pub fn trace_context(&self) -> Option<Result<TraceContext, InvalidTraceContext>> {
        let parent = self.get(header::TRACEPARENT)?;
        Some(TraceContext::parse(parent, self.get(header::TRACESTATE)))
    }

    /// Sets `traceparent` and, when there is one, `tracestate`.
    pub fn set_trace_context(&mut self, context: &TraceContext) {
        self.set(ByteString::from_static(header::TRACEPARENT), context.traceparent().into());
        match context.tracestate() {
            Some(state) => self.set(ByteString::from_static(header::TRACESTATE), state.into()),
            None => {
                self.remove(header::TRACESTATE);
            }
        }
    }
}

impl Default for Headers {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter()) && self.binary == other.binary
    }
}

impl Eq for Headers {}

impl From<PackedHeaders> for Headers {
    fn from(packed: PackedHeaders) -> Self {
        Self { text: Texts::Packed(packed), binary: None }
    }
}

/// The headers of one of the two, and their number.
struct Iter<'h, P> {
    list: std::slice::Iter<'h, (ByteString, ByteString)>,
    packed: Option<P>,
    left: usize,
}

impl<'h, P: Iterator<Item = (&'h str, &'h str)>> Iterator for Iter<'h, P> {
    type Item = (&'h str, &'h str);

    fn next(&mut self) -> Option<Self::Item> {
        let next = match &mut self.packed {
            Some(packed) => packed.next(),
            None => self.list.next().map(|(name, value)| (&**name, &**value)),
        };
        self.left -= usize::from(next.is_some());
        next
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<'h, P: Iterator<Item = (&'h str, &'h str)>> ExactSizeIterator for Iter<'h, P> {}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = self.iter_bytes().map(|(name, _)| name);
        f.debug_set().entries(self.iter().map(|(name, _)| name).chain(binary)).finish()
    }
}

/// `true` for a name that every broker can carry.
pub(super) fn is_legal(name: &str) -> bool {
    (1..=255).contains(&name.len())
}

fn valid(name: ByteString) -> Result<ByteString, InvalidHeader> {
    match name.len() {
        0 => Err(InvalidHeader::EmptyName),
        length if length > 255 => Err(InvalidHeader::NameTooLong { length }),
        _ => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_occurs_once_and_keeps_its_place() {
        let mut headers = Headers::new();
        headers.insert("a", "1").unwrap();
        headers.insert("b", "2").unwrap();
        headers.insert("a", "3").unwrap();
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("a", "3"), ("b", "2")]);
        assert!(headers.remove("a") && !headers.remove("a"));
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn pairs_are_inserted_in_order_and_linear_time() {
        let pair = |name: &'static str, value: &'static [u8]| (name.into(), Bytes::from(value));
        let fillers = || (0..40).map(|n| (n.to_string().into(), Bytes::new()));
        let pairs = [
            pair("a", b"1"),
            pair("b", b"\xff"),
            pair("", b"no name"),
            pair("a", b"2"),
            pair("c", b"3"),
            pair("b", b"4"),
        ];
        let mut one_by_one = Headers::new();
        for (name, value) in pairs.clone() {
            let _ = one_by_one.insert_bytes(name, value);
        }
        assert_eq!(Headers::from_pairs(pairs.clone()), one_by_one);
        for (name, value) in fillers() {
            one_by_one.insert_bytes(name, value).unwrap();
        }
        let many = Headers::from_pairs(pairs.into_iter().chain(fillers()));
        assert_eq!(many.len(), one_by_one.len());
        for name in ["a", "b", "c", "0", "39"] {
            assert_eq!(many.get_bytes(name), one_by_one.get_bytes(name), "{name}");
        }
        // In quadratic time this takes minutes.
        let many = (0..1_000_000).map(|number| (number.to_string().into(), Bytes::new()));
        assert_eq!(Headers::from_pairs(many).len(), 1_000_000);
    }

    #[test]
    fn a_value_is_text_or_bytes() {
        let id = Bytes::from_static(&[1, 0xff]);
        let mut headers = Headers::new();
        headers.insert("a", "1").unwrap();
        headers.insert_bytes("id", id.clone()).unwrap();
        headers.insert_bytes("text", "of bytes").unwrap();
        assert_eq!((headers.get("id"), headers.get_bytes("id")), (None, Some(&id[..])));
        assert_eq!(headers.get("text"), Some("of bytes"));
        assert_eq!(headers.get_bytes("a"), Some(&b"1"[..]));
        assert_eq!(headers.iter_bytes().collect::<Vec<_>>(), [("id", &id)]);
        assert_eq!((headers.len(), headers.size()), (3, 2 + 4 + 12));
        assert_eq!(format!("{headers:?}"), r#"{"a", "text", "id"}"#);
        headers.insert("id", "7").unwrap();
        assert_eq!((headers.get("id"), headers.iter_bytes().count()), (Some("7"), 0));
        headers.insert_bytes("id", id.clone()).unwrap();
        assert_eq!((headers.get("id"), headers.len()), (None, 3));
        assert!(headers.remove("id") && headers.get_bytes("id").is_none());
        assert!(headers.insert_bytes("", id).is_err());
    }

    #[test]
    fn names_that_amqp_cannot_carry_are_refused() {
        let mut headers = Headers::new();
        assert_eq!(headers.insert("", "x"), Err(InvalidHeader::EmptyName));
        assert_eq!(
            headers.insert("n".repeat(256), "x"),
            Err(InvalidHeader::NameTooLong { length: 256 })
        );
        assert!(headers.is_empty());
    }

    #[test]
    fn debug_hides_values() {
        let mut headers = Headers::new();
        headers.insert("authorization", "Bearer secret").unwrap();
        assert_eq!(format!("{headers:?}"), r#"{"authorization"}"#);
    }

    #[test]
    fn a_new_trace_context_drops_the_old_state() {
        let mut headers = Headers::new();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.set_trace_context(&TraceContext::parse(parent, Some("a=1")).unwrap());
        assert_eq!(headers.get(header::TRACESTATE), Some("a=1"));
        headers.set_trace_context(&TraceContext::parse(parent, None).unwrap());
        assert_eq!(headers.get(header::TRACESTATE), None);
        assert_eq!(headers.get(header::TRACEPARENT), Some(parent));
    }
}
