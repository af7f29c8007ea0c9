//! The state that the workers of one subscription share.

use std::sync::Arc;

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::monitor::Monitor;
use super::scheduler::Scheduler;
use super::spec::Spec;
use crate::consume::{DeadLetterTarget, Source};

/// The interval at which held jobs are checked for a revocation.
pub(super) const REVOCATION_CHECK: Duration = Duration::from_secs(1);

/// One running subscription: its configuration, its scheduler and its monitor.
pub(super) struct SubscriptionContext {
    pub(super) spec: Spec,
    pub(super) monitor: Arc<Monitor>,
    pub(super) scheduler: Scheduler,
}

/// The reason why [`SubscriptionContext::wait`] ended.
pub(super) enum WaitEnd {
    Due,
    Revoked,
    Stopped,
}

impl SubscriptionContext {
    pub(super) fn new(
        spec: Spec,
        monitor: Arc<Monitor>,
        source: Box<dyn Source>,
        stop: CancellationToken,
    ) -> Self {
        let scheduler = Scheduler::new(&spec, Arc::clone(&monitor), source, stop);
        Self { spec, monitor, scheduler }
    }

    /// `true` if dead letters are not stored but acked.
    pub(super) fn discards(&self) -> bool {
        self.spec.dead_letter == DeadLetterTarget::Discard
    }

    /// Waits until `until` with jobs that no lane holds. Ends earlier when the subscription stops or, at
    /// most [`REVOCATION_CHECK`] later, when a job was revoked.
    pub(super) async fn wait(&self, until: Instant, is_revoked: impl Fn() -> bool) -> WaitEnd {
        loop {
            let next = until.min(Instant::now() + REVOCATION_CHECK);
            tokio::select! {
                () = self.scheduler.stop.cancelled() => return WaitEnd::Stopped,
                () = tokio::time::sleep_until(next) => {}
            }
            if is_revoked() {
                return WaitEnd::Revoked;
            }
            if next == until {
                return WaitEnd::Due;
            }
        }
    }
}
