//! Polls a source for deliveries and makes jobs of them.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use crate::consume::{Fetch, Source, SourceError};
use crate::dispatch::panic_message;

/// The most deliveries that are taken from a source before they are handled.
pub(super) const FETCH: usize = Fetch::MOST;

/// The end of a source, if it ended.
pub(super) type SourceEnd = Option<Result<(), SourceError>>;

/// Takes the available deliveries, as far as there is room; waits for the first.
///
/// Cancel safe: a cancelled call has taken nothing, because deliveries are taken only in the poll that
/// completes it.
pub(super) async fn fetch(source: &mut dyn Source, fetch: &mut Fetch) -> SourceEnd {
    poll_fn(|cx| {
        // A source is code of a broker crate. Deliveries from before its panic are kept, in order, and the source
        // is not polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| fetch.poll(source, cx)));
        polled.unwrap_or_else(|panic| {
            let text = format!("its source panicked: {}", panic_message(panic));
            Poll::Ready(Some(Err(SourceError::new(text))))
        })
    })
    .await
    .map_or(Some(Ok(())), |polled| polled.err().map(Err))
}
