//! The report of a service that ended, and the handle that stops one.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::state::SubscriptionCounts;

/// Stops a running service. Clones stop the same one.
#[derive(Debug, Clone)]
pub struct StopHandle {
    pub(super) graceful: CancellationToken,
    pub(super) now: CancellationToken,
}

impl StopHandle {
    pub(super) fn new(graceful: CancellationToken, now: CancellationToken) -> Self {
        Self { graceful, now }
    }

    /// Takes nothing new, finishes what runs within the drain timeout, gives the rest back.
    pub fn stop(&self) {
        self.graceful.cancel();
    }

    /// Cancels what runs and gives everything back at once.
    pub fn stop_now(&self) {
        self.graceful.cancel();
        self.now.cancel();
    }
}

/// What a service did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceReport {
    /// Each subscription, in the order they were added.
    pub subscriptions: Vec<SubscriptionReport>,
}

/// What a subscription did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionReport {
    /// Its name.
    pub name: Arc<str>,
    /// What became of its messages.
    pub counts: SubscriptionCounts,
    /// Handlers that did not finish within the drain timeout; their messages were given back.
    pub cancelled: usize,
    /// What went wrong while it ended: settled messages may come again.
    pub error: Option<String>,
}
