//! Runs user code so that a panic or a timeout is a failure.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use super::failure::Failure;
use crate::dispatch::panic_message;
use crate::mediator::watched;

/// Runs code of others; a panic in it is a failure, wherever it comes from: what is dropped on the way,
/// an error that is printed.
pub(super) async fn guarded<T>(mut run: Pin<&mut impl Future<Output = T>>) -> Result<T, Failure> {
    let run = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(Failure::panicked(&panic_message(panic)))),
    });
    watched(pin!(run)).await.0
}

/// For what has no commit of ours: runs it within the timeout, guarded.
pub(super) async fn limited<T>(
    timeout: Option<Duration>,
    run: impl Future<Output = T>,
) -> Result<T, Failure> {
    let limited = async {
        match timeout {
            None => Ok(run.await),
            Some(limit) => {
                tokio::time::timeout(limit, run).await.map_err(|_| Failure::timeout(limit))
            }
        }
    };
    guarded(pin!(limited)).await.flatten()
}
