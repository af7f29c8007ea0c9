//! Runs user code so that a panic or a timeout is a failure.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use super::failure::AttemptFailure;
use crate::dispatch::panic_message;
use crate::mediator::track_commits;

/// Runs user code; a panic is a failure, also one in a destructor or in an error's `Display`.
pub(super) async fn guarded<T>(
    mut run: Pin<&mut impl Future<Output = T>>,
) -> Result<T, AttemptFailure> {
    let run = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(AttemptFailure::panicked(&panic_message(panic)))),
    });
    track_commits(pin!(run)).await.0
}

/// Runs user code that commits nothing through a mediator: within the timeout, and guarded.
pub(super) async fn limited<T>(
    timeout: Option<Duration>,
    run: impl Future<Output = T>,
) -> Result<T, AttemptFailure> {
    let limited = async {
        match timeout {
            None => Ok(run.await),
            Some(limit) => {
                tokio::time::timeout(limit, run).await.map_err(|_| AttemptFailure::timeout(limit))
            }
        }
    };
    guarded(pin!(limited)).await.flatten()
}
