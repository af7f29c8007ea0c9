//! The report of a service that ended, and the handle that stops one.

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::state::SubscriptionCounts;

/// Stops a running service. Clones stop the same one.
#[derive(Debug, Clone)]
pub struct StopHandle {
    pub(crate) graceful: CancellationToken,
    pub(crate) now: CancellationToken,
}

impl StopHandle {
    pub(crate) fn new(graceful: CancellationToken, now: CancellationToken) -> Self {
        Self { graceful, now }
    }

    /// Starts no further message, lets running handlers finish within the drain timeout, and gives the
    /// other messages back.
    pub fn stop(&self) {
        self.graceful.cancel();
    }

    /// Cancels running handlers and gives all messages back at once.
    pub fn stop_now(&self) {
        self.graceful.cancel();
        self.now.cancel();
    }
}

/// The report of a service that ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceReport {
    /// The reports of the subscriptions, in the order they were added.
    pub subscriptions: Vec<SubscriptionReport>,
}

/// One line for each subscription: its counts that are not zero, and its error.
impl fmt::Display for ServiceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{subscription}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SubscriptionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.counts)?;
        if self.cancelled > 0 {
            write!(f, ", {} cancelled at the drain timeout", self.cancelled)?;
        }
        match &self.error {
            Some(error) => write!(f, "; did not end well: {error}"),
            None => Ok(()),
        }
    }
}

/// The report of a subscription that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionReport {
    /// Its name.
    pub name: Arc<str>,
    /// The outcomes of its messages.
    pub counts: SubscriptionCounts,
    /// The number of handlers that did not finish within the drain timeout; their messages were given back.
    pub cancelled: usize,
    /// The error while it ended: settled messages may be redelivered.
    pub error: Option<String>,
}
