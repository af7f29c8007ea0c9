//! The correlation id that a message carries.

use std::fmt;
use std::sync::Arc;

/// Ties together all messages that one request caused.
///
/// Put one into the scope (`mediator.send_in(Scope::new().with(id), command)`) and every message of
/// that `send` carries it; without one each `send` gets an id of its own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CorrelationId(Arc<str>);

impl CorrelationId {
    /// An id chosen by the caller.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CorrelationId").field(&&*self.0).finish()
    }
}
