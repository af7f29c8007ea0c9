//! The nesting of sends in one task: its depth, and whether a nested send committed work.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;

use super::error::SendError;

/// The limit on the depth of nested sends. Each takes several KiB of stack in a debug build, more with
/// middlewares; the stack of a tokio thread has 2 MiB.
pub(super) const MAX_NESTING: usize = 32;

/// The innermost send that is being polled on a thread's stack.
#[derive(Clone, Copy)]
struct Level {
    depth: usize,
    /// Set if a nested send committed its work and failed to publish the events.
    committed_below: bool,
    /// Set for a send, and for code run by [`track_commits`]. Otherwise no code resets the mark.
    is_tracked: bool,
}

const OUTSIDE: Level = Level { depth: 0, committed_below: false, is_tracked: false };

thread_local! {
    static LEVEL: Cell<Level> = const { Cell::new(OUTSIDE) };
}

/// The number of sends around the caller.
pub(super) fn nesting() -> usize {
    LEVEL.get().depth
}

/// `true` if a send nested in the caller's send, or in the code that [`track_commits`] runs, committed its
/// work without publishing the events.
pub(crate) fn committed_below() -> bool {
    LEVEL.get().committed_below
}

/// Restores the level of the enclosing send, also after a panic.
struct Enclosing(Level);

impl Drop for Enclosing {
    fn drop(&mut self) {
        LEVEL.set(self.0);
    }
}

/// Runs a send, and counts it in [`nesting`] while it is polled. The second value is `true` if a nested
/// send committed its work without publishing the events. If this send then fails, its error says so,
/// unless it is that of a handler or a middleware, and the enclosing send is marked.
pub(super) async fn nested<T, E: fmt::Display>(
    send: Pin<&mut impl Future<Output = Result<T, SendError<T, E>>>>,
) -> (Result<T, SendError<T, E>>, bool) {
    let (result, committed_below) = run(send, 1).await;
    let result = match committed_below {
        true => result.map_err(SendError::after_commit),
        false => result,
    };
    if matches!(result, Err(SendError::Undelivered(_))) || (result.is_err() && committed_below) {
        let level = LEVEL.get();
        LEVEL.set(Level { committed_below: level.is_tracked, ..level });
    }
    (result, committed_below)
}

/// Runs code that may send. The second value is that of [`nested`].
pub(crate) async fn track_commits<T>(code: Pin<&mut impl Future<Output = T>>) -> (T, bool) {
    run(code, 0).await
}

async fn run<T>(mut code: Pin<&mut impl Future<Output = T>>, deeper: usize) -> (T, bool) {
    let mut committed_below = false;
    let result = poll_fn(|cx| {
        let enclosing = Enclosing(LEVEL.get());
        LEVEL.set(Level { depth: enclosing.0.depth + deeper, committed_below, is_tracked: true });
        let polled = code.as_mut().poll(cx);
        committed_below = LEVEL.get().committed_below;
        polled
    })
    .await;
    (result, committed_below)
}
