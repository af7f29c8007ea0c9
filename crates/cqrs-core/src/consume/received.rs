//! [`Received`]: the consumed message that a handler gets beside its event, made by the service runtime and held by
//! the scope of its attempt.

use std::any::{Any, TypeId};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::fetch::Fetch;
use super::incoming::Incoming;
use super::retry::RetryState;
use crate::event::Timestamp;
use crate::message::{CorrelationId, TraceContext};

/// The message of a handler's event, and its attempt. Cloning is cheap.
///
/// Handler functions get it as their second argument; handlers of a mediator find it in their scope
/// (`scope.get::<Received>()`).
#[derive(Clone)]
pub struct Received(Arc<Shared>);

#[derive(Clone)]
struct Shared {
    /// `None` only in a spare one.
    message: Option<Arc<Incoming>>,
    group: Arc<str>,
    retry: RetryState,
    /// The number of times this process gave the message back without a failed attempt. Lost on a restart.
    returned: u32,
    /// Read on first use.
    context: OnceLock<HeaderContext>,
}

/// The context of the sender, from the headers.
#[derive(Clone)]
struct HeaderContext {
    correlation: Option<CorrelationId>,
    trace: Option<TraceContext>,
}

impl Received {
    pub(crate) fn new(
        message: impl Into<Arc<Incoming>>,
        group: Arc<str>,
        retry: RetryState,
    ) -> Self {
        let (message, context) = (Some(message.into()), OnceLock::new());
        Self(Arc::new(Shared { message, group, retry, returned: 0, context }))
    }

    /// The message; its fields are available through `Deref`, too.
    pub fn message(&self) -> &Incoming {
        match &self.0.message {
            Some(message) => message,
            None => unreachable!("a spare one is filled before it is used"),
        }
    }

    /// The group that received it.
    pub fn group(&self) -> &str {
        &self.0.group
    }

    /// The number of this attempt, from 1: the failed attempts, the times this process gave the message back, and
    /// this one. The failed attempts are kept with the message, so that restarts and other members of the group
    /// continue their count as far as the broker can tell.
    pub fn attempt(&self) -> u32 {
        self.0.retry.attempts.saturating_add(self.0.returned).saturating_add(1)
    }

    /// The failed attempts: their number, the first and the last one, and the crashes.
    pub fn retry(&self) -> &RetryState {
        &self.0.retry
    }

    /// Counts a failed attempt. A clone that a handler keeps shows its own attempt.
    pub(crate) fn note_failure(&mut self) {
        self.set_retry(self.0.retry.failed(Timestamp::now()));
    }

    pub(crate) fn set_retry(&mut self, retry: RetryState) {
        Arc::make_mut(&mut self.0).retry = retry;
    }

    /// Counts that a handler gave the message back.
    pub(crate) fn note_return(&mut self) {
        let shared = Arc::make_mut(&mut self.0);
        shared.returned = shared.returned.saturating_add(1);
    }

    /// The value of type `T` that a scope of this message has: the message itself, and the correlation and trace of
    /// its headers.
    pub(crate) fn scope_value<T: 'static>(&self) -> Option<&T> {
        let of = TypeId::of::<T>();
        let value: &dyn Any = if of == TypeId::of::<Self>() {
            self
        } else if of == TypeId::of::<CorrelationId>() {
            self.header_context()?.correlation.as_ref()?
        } else if of == TypeId::of::<TraceContext>() {
            self.header_context()?.trace.as_ref()?
        } else {
            return None;
        };
        value.downcast_ref()
    }

    fn header_context(&self) -> Option<&HeaderContext> {
        let headers = &self.headers;
        if headers.is_empty() {
            return None;
        }
        Some(self.0.context.get_or_init(|| HeaderContext {
            correlation: headers.correlation_id().map(CorrelationId::new),
            trace: headers.trace_context().and_then(Result::ok),
        }))
    }
}

/// Values of [`Received`] whose message is done, to be filled again.
#[derive(Default)]
pub(crate) struct SpareReceived(Vec<Received>);

impl SpareReceived {
    /// Keeps `done` if nobody else has it, without its message, which is returned.
    #[inline]
    pub(crate) fn keep(&mut self, mut done: Received) -> Option<Arc<Incoming>> {
        let shared = Arc::get_mut(&mut done.0)?;
        let message = shared.message.take();
        shared.context = OnceLock::new();
        if self.0.len() < Fetch::MOST {
            self.0.push(done);
        }
        message
    }

    /// Takes the values of `other`, as far as there is room.
    pub(crate) fn append(&mut self, other: &mut Self) {
        let room = Fetch::MOST.saturating_sub(self.0.len());
        self.0.extend(other.0.drain(..room.min(other.0.len())));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// As [`Received::new`].
    #[inline]
    pub(crate) fn fill(
        &mut self,
        message: Arc<Incoming>,
        group: &Arc<str>,
        retry: RetryState,
    ) -> Received {
        if let Some(mut spare) = self.0.pop()
            && let Some(shared) = Arc::get_mut(&mut spare.0)
        {
            (shared.message, shared.retry, shared.returned) = (Some(message), retry, 0);
            if !Arc::ptr_eq(&shared.group, group) {
                shared.group.clone_from(group);
            }
            return spare;
        }
        Received::new(message, Arc::clone(group), retry)
    }
}

impl Deref for Received {
    type Target = Incoming;

    fn deref(&self) -> &Incoming {
        self.message()
    }
}

crate::debug_fields!(Received {}, |it|
    message: it.message(), group: it.group(), attempt: it.attempt());

#[cfg(test)]
mod tests {
    use super::*;

    fn received(body: &'static str) -> Received {
        Received::new(Incoming::new("users", body), "group".into(), RetryState::default())
    }

    #[test]
    fn spare_has_nothing_of_its_earlier_message() {
        let (mut spare, mut done) = (SpareReceived::default(), received("first"));
        done.note_failure();
        done.note_return();
        assert!(spare.keep(done).is_some());
        assert_eq!(spare.0.len(), 1);
        let group = "other".into();
        let second = Incoming::new("orders", "second").into();
        let filled = spare.fill(second, &group, RetryState::default());
        assert!(spare.0.is_empty());
        let expected =
            Received::new(Incoming::new("orders", "second"), group, RetryState::default());
        assert_eq!(filled.message(), expected.message());
        assert_eq!((filled.group(), filled.attempt()), ("other", 1));
        assert_eq!(filled.retry(), expected.retry());
    }

    #[test]
    fn message_that_a_handler_keeps_is_no_spare() {
        let (mut spare, done) = (SpareReceived::default(), received("kept"));
        let kept = done.clone();
        assert!(spare.keep(done).is_none());
        assert!(spare.0.is_empty());
        assert_eq!(kept.body.as_deref(), Some(&b"kept"[..]));
    }
}
