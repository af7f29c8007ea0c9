//! The time limits of an [`App`](super::App)'s stop.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::consume::support::far_deadline;

/// The time that the parts of a stop have: servers and services three quarters, mediators and brokers the rest.
pub(super) struct Ending {
    intake: Instant,
    all: Instant,
    /// Cancelled when everything should end at once.
    now: CancellationToken,
}

/// The time in which a cancelled service gives its messages back.
const CANCELLED: Duration = Duration::from_secs(2);

impl Ending {
    pub(super) fn new(deadline: Duration, now: CancellationToken) -> Self {
        Self { intake: far_deadline(deadline / 4 * 3), all: far_deadline(deadline), now }
    }

    /// Waits until `parts` have ended, within the time of servers and services. `false` if it is over before.
    pub(super) async fn intake(&self, parts: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = self.now.cancelled() => false,
            () = parts => true,
            () = tokio::time::sleep_until(self.intake) => false,
        }
    }

    /// Waits until the services that were cancelled have given their messages back.
    pub(super) async fn cancelled(&self, services: impl Future<Output = ()>) {
        let _left_behind = tokio::time::timeout(CANCELLED, services).await;
    }

    /// Runs `call` with the time that is left, and again with none when everything should end at once.
    pub(super) async fn within<F: Future>(&self, call: impl Fn(Duration) -> F) -> F::Output {
        tokio::select! {
            biased;
            () = self.now.cancelled() => {}
            ended = call(self.all.saturating_duration_since(Instant::now())) => return ended,
        }
        call(Duration::ZERO).await
    }
}
