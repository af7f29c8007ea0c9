//! Panics of user code as values, used wherever the framework calls handlers and brokers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Calls `call` and runs its future; a panic in either becomes its text. Borrowed values may be
/// inconsistent afterwards, so the caller must treat the call as failed.
#[inline]
pub(crate) fn caught<F: Future + Unpin>(call: impl FnOnce() -> F) -> Caught<F> {
    Caught(caught_panic(call))
}

/// As [`caught`], with an error of one word: the result of a handler that returns one word stays in registers.
#[inline]
pub(crate) fn caught_panic<F: Future + Unpin>(call: impl FnOnce() -> F) -> CaughtPanic<F> {
    CaughtPanic(catch_unwind(AssertUnwindSafe(call)).map_err(Panic::new))
}

/// A caught panic.
pub(crate) struct Panic(Box<PanicText>);

struct PanicText(String);

impl Panic {
    #[cold]
    pub(crate) fn new(panic: Box<dyn Any + Send>) -> Self {
        Self(Box::new(PanicText(panic_message(panic))))
    }

    pub(crate) fn into_text(self) -> String {
        self.0.0
    }
}

/// The future of [`caught`].
pub(crate) struct Caught<F>(CaughtPanic<F>);

impl<F: Future + Unpin> Future for Caught<F> {
    type Output = Result<F::Output, String>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(Panic::into_text)
    }
}

/// The future of [`caught_panic`].
pub(crate) struct CaughtPanic<F>(Result<F, Panic>);

impl<F: Future + Unpin> Future for CaughtPanic<F> {
    type Output = Result<F::Output, Panic>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(future) => match catch_unwind(AssertUnwindSafe(|| Pin::new(future).poll(cx))) {
                Ok(poll) => poll.map(Ok),
                Err(panic) => Poll::Ready(Err(Panic::new(panic))),
            },
            Err(panic) => {
                let polled_again = Panic(Box::new(PanicText(String::new())));
                Poll::Ready(Err(std::mem::replace(panic, polled_again)))
            }
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
