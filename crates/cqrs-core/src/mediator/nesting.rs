//! The sends that run inside one another in one task: how deep, and whether one of them committed work.

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;

use super::SendError;

/// How many sends may run inside one another. Each takes several KiB of the stack in a debug build, more
/// with middlewares; the stack of a tokio thread has 2 MiB.
pub(super) const MAX_NESTING: usize = 32;

/// The innermost send that is being polled on a thread's stack.
#[derive(Clone, Copy)]
struct Level {
    depth: usize,
    /// Set if a send inside it committed its work and failed to publish the events.
    committed_below: bool,
}

thread_local! {
    static LEVEL: Cell<Level> = const { Cell::new(Level { depth: 0, committed_below: false }) };
}

/// How many sends the caller runs in.
pub(super) fn nesting() -> usize {
    LEVEL.get().depth
}

/// Restores the level of the enclosing send, also after a panic.
struct Enclosing(Level);

impl Drop for Enclosing {
    fn drop(&mut self) {
        LEVEL.set(self.0);
    }
}

/// Runs a send, and counts it in [`nesting`] while it is polled. The second value: whether a send inside it
/// committed its work without publishing the events. If so, and this send fails, the enclosing send learns it.
pub(super) async fn nested<T, E>(
    mut send: Pin<&mut impl Future<Output = Result<T, SendError<T, E>>>>,
) -> (Result<T, SendError<T, E>>, bool) {
    let mut committed_below = false;
    let result = poll_fn(|cx| {
        let enclosing = Enclosing(LEVEL.get());
        LEVEL.set(Level { depth: enclosing.0.depth + 1, committed_below });
        let polled = send.as_mut().poll(cx);
        committed_below = LEVEL.get().committed_below;
        polled
    })
    .await;
    if matches!(result, Err(SendError::Undelivered(_))) || (result.is_err() && committed_below) {
        LEVEL.set(Level { committed_below: true, ..LEVEL.get() });
    }
    (result, committed_below)
}

/// The cause of [`SendError::HandlerAfterCommit`].
#[derive(Debug)]
pub(crate) struct CommittedBelow;

impl fmt::Display for CommittedBelow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a request that the handler sent is committed, but its events are not published: do not send \
             the request again",
        )
    }
}

impl Error for CommittedBelow {}
