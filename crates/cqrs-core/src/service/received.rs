//! The received message that a handler gets beside its event.

use std::ops::Deref;
use std::sync::Arc;

use crate::consume::{Incoming, RetryState};

/// The message of a handler's event, and its attempt. Cloning is cheap.
///
/// Handler functions get it as their second argument; handlers of a mediator find it in their scope
/// (`scope.get::<Received>()`).
#[derive(Clone)]
pub struct Received {
    pub(super) message: Arc<Incoming>,
    pub(super) group: Arc<str>,
    pub(super) retry: RetryState,
    /// The number of times this process gave the message back without a failed attempt. Lost on a restart.
    pub(super) returned: u32,
}

impl Received {
    /// The message; its fields are available through `Deref`, too.
    pub fn message(&self) -> &Incoming {
        &self.message
    }

    /// The group that received it.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The number of this attempt, from 1: the failed attempts, the times this process gave the message back, and
    /// this one. The failed attempts are kept with the message, so that restarts and other members of the group
    /// continue their count as far as the broker can tell.
    pub fn attempt(&self) -> u32 {
        self.retry.attempts.saturating_add(self.returned).saturating_add(1)
    }

    /// The failed attempts: their number, the first and the last one, and the crashes.
    pub fn retry(&self) -> &RetryState {
        &self.retry
    }
}

impl Deref for Received {
    type Target = Incoming;

    fn deref(&self) -> &Incoming {
        &self.message
    }
}

crate::debug_fields!(Received { message, group }, |it| attempt: it.attempt());
