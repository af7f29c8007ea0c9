//! How deep handlers that send requests themselves are nested, so that a loop of them is an error.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::panics::{Caught, caught};
use crate::broker::BoxFuture;

/// How many handlers may run inside one another. Each takes several KiB of the stack in a debug build, more
/// with middlewares; the stack of a tokio thread has 2 MiB.
pub(crate) const MAX_NESTING: usize = 32;

thread_local! {
    /// The handlers that are being polled on this thread's stack.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// How many handlers the caller runs in.
pub(crate) fn nesting() -> usize {
    DEPTH.get()
}

/// One handler on the stack, until it is dropped.
struct Level;

impl Level {
    fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Runs a handler as [`caught`] does, and counts it in [`nesting`] while it is polled.
pub(crate) fn run_handler<'a, T>(call: impl FnOnce() -> BoxFuture<'a, T>) -> Nested<'a, T> {
    let _level = Level::enter();
    Nested(caught(call))
}

/// The future of [`run_handler`].
pub(crate) struct Nested<'a, T>(Caught<'a, T>);

impl<T> Future for Nested<'_, T> {
    type Output = Result<T, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let _level = Level::enter();
        Pin::new(&mut self.0).poll(cx)
    }
}
