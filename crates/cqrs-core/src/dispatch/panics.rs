//! Panics of user code as values, used wherever the framework calls handlers and brokers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Calls `call` and runs its future; a panic in either becomes its text. Borrowed values may be
/// inconsistent afterwards, so the caller must treat the call as failed.
#[inline]
pub(crate) fn caught<F: Future + Unpin>(call: impl FnOnce() -> F) -> Caught<F> {
    Caught(catch_unwind(AssertUnwindSafe(call)).map_err(panic_message))
}

/// The future of [`caught`].
pub(crate) struct Caught<F>(Result<F, String>);

impl<F: Future + Unpin> Future for Caught<F> {
    type Output = Result<F::Output, String>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(future) => match catch_unwind(AssertUnwindSafe(|| Pin::new(future).poll(cx))) {
                Ok(poll) => poll.map(Ok),
                Err(panic) => Poll::Ready(Err(panic_message(panic))),
            },
            Err(panic) => Poll::Ready(Err(std::mem::take(panic))),
        }
    }
}

/// The text of a panic. Never panics, although the payload may when it is dropped.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => {
            let text = match panic.downcast_ref::<&str>() {
                Some(text) => (*text).to_owned(),
                None => "a panic without a text".to_owned(),
            };
            if let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                // Its payload may panic, too, so it is leaked.
                std::mem::forget(next);
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics when it is dropped, with another value of this type.
    struct Chain;

    impl Drop for Chain {
        fn drop(&mut self) {
            std::panic::panic_any(Chain)
        }
    }

    #[test]
    fn payload_that_panics_on_drop_is_contained() {
        assert_eq!(panic_message(Box::new(Chain)), "a panic without a text");
        assert_eq!(panic_message(Box::new("static")), "static");
        assert_eq!(panic_message(Box::new("owned".to_owned())), "owned");
    }
}
