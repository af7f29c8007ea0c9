//! The W3C trace context that a message carries.

/// The sender's span in a distributed trace: [W3C Trace Context], level 1.
///
/// [W3C Trace Context]: https://www.w3.org/TR/trace-context/
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: Box<str>,
    tracestate: Option<Box<str>>,
}

/// A `traceparent` that is not of the form `00-<32 hex>-<16 hex>-<2 hex>` in lower case, or whose
/// ids are all zero (W3C Trace Context, 3.2.2).
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("traceparent is not of the W3C form 00-<trace id>-<parent id>-<flags>")]
pub struct InvalidTraceContext;

crate::error_debug!(InvalidTraceContext);

impl TraceContext {
    /// Reads a `traceparent` header and the `tracestate` that came with it.
    ///
    /// A later version with more fields after the flags is accepted, as the standard requires.
    ///
    /// # Errors
    /// If `traceparent` is malformed.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Result<Self, InvalidTraceContext> {
        let bytes = traceparent.as_bytes();
        let version = bytes.get(..2).ok_or(InvalidTraceContext)?;
        let exact = bytes.len() == 55 || (version != b"00" && bytes.get(55) == Some(&b'-'));
        let dashes = [2, 35, 52].iter().all(|&at| bytes.get(at) == Some(&b'-'));
        let hex = |range: std::ops::Range<usize>| {
            bytes
                .get(range)
                .filter(|part| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        };
        let some = |part: &&[u8]| part.iter().any(|&byte| byte != b'0');
        let valid = exact
            && dashes
            && version != b"ff"
            && hex(0..2).is_some()
            && hex(3..35).filter(some).is_some()
            && hex(36..52).filter(some).is_some()
            && hex(53..55).is_some();
        if !valid {
            return Err(InvalidTraceContext);
        }
        Ok(Self {
            traceparent: traceparent.into(),
            tracestate: tracestate.filter(|state| !state.is_empty()).map(Into::into),
        })
    }

    /// The `traceparent` header.
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The `tracestate` header, when there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// The trace id, 32 lower-case hex digits.
    pub fn trace_id(&self) -> &str {
        &self.traceparent[3..35]
    }

    /// The id of the sender's span, 16 lower-case hex digits.
    pub fn parent_id(&self) -> &str {
        &self.traceparent[36..52]
    }

    /// `true` if the sender recorded the trace (flag bit 0).
    pub fn is_sampled(&self) -> bool {
        u8::from_str_radix(&self.traceparent[53..55], 16).is_ok_and(|flags| flags & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_the_standards_example() {
        let context = TraceContext::parse(GOOD, Some("congo=t61rcWkgMzE")).unwrap();
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent_id(), "b7ad6b7169203331");
        assert_eq!(context.tracestate(), Some("congo=t61rcWkgMzE"));
        assert!(context.is_sampled());
    }

    #[test]
    fn refuses_what_the_standard_refuses() {
        for bad in [
            "",
            "00",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad, None), Err(InvalidTraceContext), "{bad}");
        }
    }

    #[test]
    fn takes_a_later_version_with_more_fields() {
        let later = format!("01{}-what", &GOOD[2..]);
        assert!(TraceContext::parse(&later, None).is_ok());
        assert!(TraceContext::parse(&format!("{later}é"), None).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            if let Ok(context) = TraceContext::parse(&text, None) {
                let _ = (context.trace_id(), context.parent_id(), context.is_sampled());
            }
        }
    }
}
