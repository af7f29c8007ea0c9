//! Polls a source for deliveries and makes jobs of them.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::job::Job;
use super::monitor::Monitor;
use crate::consume::{Source, SourceDelivery, SourceError, SpareReceived};
use crate::dispatch::panic_message;

/// The most deliveries that are taken from a source before they are handled.
pub(super) const FETCH: usize = 128;

/// The jobs that one poll of a source returned, and the values to make them of. Kept from one fetch to the next, so
/// that most fetches allocate nothing.
#[derive(Default)]
pub(super) struct FetchBuffer {
    pub(super) jobs: Vec<Job>,
    pub(super) spare: SpareReceived,
}

/// The end of a source, if it ended.
pub(super) type SourceEnd = Option<Result<(), SourceError>>;

/// Takes the available deliveries, at most [`FETCH`], into `buffer`; waits for the first.
///
/// Cancel safe: a cancelled call has taken nothing, because deliveries are taken only in the poll that
/// completes it.
pub(super) async fn fetch(
    source: &mut dyn Source,
    monitor: &Arc<Monitor>,
    buffer: &mut FetchBuffer,
) -> SourceEnd {
    let FetchBuffer { jobs, spare } = buffer;
    poll_fn(|cx| {
        // A source is code of a broker crate. Deliveries from before its panic are kept, in order, and the source
        // is not polled again.
        let put = |delivery| jobs.push(Job::new(delivery, monitor, spare));
        let taken = catch_unwind(AssertUnwindSafe(|| take_available(source, cx, put)));
        let end = taken.unwrap_or_else(|panic| {
            let text = format!("its source panicked: {}", panic_message(panic));
            Some(Err(SourceError::new(text)))
        });
        match jobs.is_empty() && end.is_none() {
            true => Poll::Pending,
            false => Poll::Ready(end),
        }
    })
    .await
}

/// Gives the available deliveries to `put`. Returns the end of the source, if it ended.
fn take_available(
    source: &mut dyn Source,
    cx: &mut Context<'_>,
    mut put: impl FnMut(SourceDelivery),
) -> SourceEnd {
    for _ in 0..FETCH {
        match source.poll_next(cx) {
            Poll::Ready(Some(Ok(delivery))) => put(delivery),
            Poll::Ready(Some(Err(error))) => return Some(Err(error)),
            Poll::Ready(None) => return Some(Ok(())),
            Poll::Pending => break,
        }
    }
    None
}
