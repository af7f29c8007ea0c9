//! Polls a source for deliveries and makes jobs of them.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::job::Job;
use super::monitor::Monitor;
use crate::consume::{Source, SourceError};
use crate::dispatch::panic_message;

/// The most deliveries that are taken from a source before they are handled.
pub(super) const FETCH: usize = 128;

/// The deliveries that one poll of a source returned, and its end if it ended.
pub(super) struct Fetched {
    pub(super) jobs: Vec<Job>,
    pub(super) end: Option<Result<(), SourceError>>,
}

/// Takes the available deliveries, at most [`FETCH`]; waits for the first.
///
/// Cancel safe: a cancelled call has taken nothing, because deliveries are taken only in the poll that
/// completes it.
pub(super) async fn fetch(source: &mut dyn Source, monitor: &Arc<Monitor>) -> Fetched {
    poll_fn(|cx| {
        let mut jobs = Vec::new();
        // A source is code of a broker crate. Deliveries from before its panic are kept, in order, and the source
        // is not polled again.
        let taken =
            catch_unwind(AssertUnwindSafe(|| take_available(source, monitor, &mut jobs, cx)));
        let end = taken.unwrap_or_else(|panic| {
            let text = format!("its source panicked: {}", panic_message(panic));
            Some(Err(SourceError::new(text)))
        });
        match jobs.is_empty() && end.is_none() {
            true => Poll::Pending,
            false => Poll::Ready(Fetched { jobs, end }),
        }
    })
    .await
}

/// Returns the end of the source, if it ended.
fn take_available(
    source: &mut dyn Source,
    monitor: &Arc<Monitor>,
    jobs: &mut Vec<Job>,
    cx: &mut Context<'_>,
) -> Option<Result<(), SourceError>> {
    while jobs.len() < FETCH {
        match source.poll_next(cx) {
            Poll::Ready(Some(Ok(delivery))) => jobs.push(Job::new(delivery, monitor)),
            Poll::Ready(Some(Err(error))) => return Some(Err(error)),
            Poll::Ready(None) => return Some(Ok(())),
            Poll::Pending => break,
        }
    }
    None
}
