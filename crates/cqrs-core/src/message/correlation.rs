//! The correlation id that a message carries.

use std::fmt;
use std::sync::Arc;

/// The id that all messages caused by one request share.
///
/// Every message of a `send` carries the id in its scope (`mediator.send_in(Scope::new().with(id),
/// command)`); without one each `send` gets a new id.
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
