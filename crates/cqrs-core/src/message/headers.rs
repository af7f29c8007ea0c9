use std::fmt;

use super::{InvalidTraceContext, TraceContext};

/// Names of the headers this framework writes and reads, the same on every broker.
pub mod header {
    /// Ties together all messages that one request caused. FastStream's name.
    pub const CORRELATION_ID: &str = "correlation_id";
    /// [W3C Trace Context](https://www.w3.org/TR/trace-context/), the caller's span.
    pub const TRACEPARENT: &str = "traceparent";
    /// [W3C Trace Context](https://www.w3.org/TR/trace-context/), vendor data.
    pub const TRACESTATE: &str = "tracestate";
    /// The event's name, where the broker has no property for it. python-cqrs's name.
    pub const EVENT_NAME: &str = "event_name";
    /// The event's id, hyphenated, where the broker has no property for it. python-cqrs's name.
    pub const MESSAGE_ID: &str = "message_id";
    /// The message's key, on brokers whose frame has no slot for one (RabbitMQ).
    pub const KEY: &str = "message_key";
}

/// Text headers in order of insertion. A name occurs once.
///
/// Values are UTF-8 text, because FastStream reads every header as text and fails on any other
/// (seen with FastStream 0.7.8).
///
/// `Debug` shows names only: values may be personal data.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Box<str>, Box<str>)>);

/// A header that cannot stand on every broker's wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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

impl Headers {
    /// No headers. Does not allocate.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Sets `name`, replacing an earlier value of the same name.
    ///
    /// # Errors
    /// When the name is empty or longer than 255 bytes; nothing is changed then.
    pub fn insert(
        &mut self,
        name: impl Into<Box<str>>,
        value: impl Into<Box<str>>,
    ) -> Result<(), InvalidHeader> {
        let name = name.into();
        match name.len() {
            0 => return Err(InvalidHeader::EmptyName),
            length if length > 255 => return Err(InvalidHeader::NameTooLong { length }),
            _ => {}
        }
        self.set(name, value.into());
        Ok(())
    }

    fn set(&mut self, name: Box<str>, value: Box<str>) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, slot)) => *slot = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of `name`; names are case-sensitive, as on both brokers.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| &**known == name).map(|(_, value)| &**value)
    }

    /// Takes `name` out.
    pub fn remove(&mut self, name: &str) -> Option<Box<str>> {
        let at = self.0.iter().position(|(known, _)| &**known == name)?;
        Some(self.0.remove(at).1)
    }

    /// Names and values in order of insertion.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How many headers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all names and values.
    pub fn size(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// What ties this message to the request that caused it.
    pub fn correlation_id(&self) -> Option<&str> {
        self.get(header::CORRELATION_ID)
    }

    /// Sets the correlation id.
    pub fn set_correlation_id(&mut self, id: impl Into<Box<str>>) {
        self.set(header::CORRELATION_ID.into(), id.into());
    }

    /// The sender's span; `None` without a `traceparent` header.
    ///
    /// # Errors
    /// When `traceparent` is not of the W3C form. The rule there is to go on without it.
    pub fn trace_context(&self) -> Option<Result<TraceContext, InvalidTraceContext>> {
        let parent = self.get(header::TRACEPARENT)?;
        Some(TraceContext::parse(parent, self.get(header::TRACESTATE)))
    }

    /// Sets `traceparent` and, when there is one, `tracestate`.
    pub fn set_trace_context(&mut self, context: &TraceContext) {
        self.set(header::TRACEPARENT.into(), context.traceparent().into());
        match context.tracestate() {
            Some(state) => self.set(header::TRACESTATE.into(), state.into()),
            None => drop(self.remove(header::TRACESTATE)),
        }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(name, _)| name)).finish()
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
        assert_eq!(headers.remove("a").as_deref(), Some("3"));
        assert_eq!(headers.len(), 1);
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
