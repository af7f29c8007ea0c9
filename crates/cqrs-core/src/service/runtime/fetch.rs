//! Polls a source for deliveries and makes jobs of them.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

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
        let mut end = None;
        while jobs.len() < FETCH && end.is_none() {
            // A source is code of a broker crate. Deliveries from before its panic are kept, in order, and
            // the source is not polled again.
            let polled = catch_unwind(AssertUnwindSafe(|| source.poll_next(cx)));
            let polled = polled.unwrap_or_else(|panic| {
                let text = format!("its source panicked: {}", panic_message(panic));
                Poll::Ready(Some(Err(SourceError::new(text))))
            });
            match polled {
                Poll::Ready(Some(Ok(delivery))) => jobs.push(Job::new(delivery, monitor)),
                Poll::Ready(Some(Err(error))) => end = Some(Err(error)),
                Poll::Ready(None) => end = Some(Ok(())),
                Poll::Pending => break,
            }
        }
        match jobs.is_empty() && end.is_none() {
            true => Poll::Pending,
            false => Poll::Ready(Fetched { jobs, end }),
        }
    })
    .await
}
