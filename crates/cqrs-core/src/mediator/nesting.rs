//! The nesting of sends in one task: its depth, and whether a nested send committed work.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;

use super::error::SendError;

/// The limit on the depth of nested sends. Each takes several KiB of stack in a debug build, more with
/// middlewares; the stack of a tokio thread has 2 MiB.
pub(super) const MAX_NESTING: usize = 32;

/// The innermost send that is being polled on a thread's stack. One integer, because each poll of a send reads and
/// sets it twice: the number of sends in the upper bits, and two marks.
#[derive(Clone, Copy)]
struct Level(u32);

const OUTSIDE: Level = Level(0);
/// Set if a nested send committed its work and failed to publish the events.
const COMMITTED_BELOW: u32 = 1;
/// Set for a send, and for code run by [`track_commits`]. Otherwise no code resets the other mark.
const TRACKED: u32 = 2;
/// One send.
const SEND: u32 = 4;

impl Level {
    fn depth(self) -> usize {
        (self.0 / SEND) as usize
    }

    fn is_tracked(self) -> bool {
        self.0 & TRACKED != 0
    }

    fn committed_below(self) -> bool {
        self.0 & COMMITTED_BELOW != 0
    }
}

thread_local! {
    static LEVEL: Cell<Level> = const { Cell::new(OUTSIDE) };
}

/// The number of sends around the caller.
#[inline]
pub(super) fn nesting() -> usize {
    LEVEL.get().depth()
}

/// `true` if a send nested in the caller's send, or in the code that [`track_commits`] runs, committed its
/// work without publishing the events.
pub(crate) fn committed_below() -> bool {
    LEVEL.get().committed_below()
}

/// Restores the level of the enclosing send, also after a panic.
struct Enclosing(Level);

impl Drop for Enclosing {
    #[inline]
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
    let (result, committed_below) = run(send, SEND).await;
    match result {
        Ok(response) => (Ok(response), committed_below),
        Err(error) => (Err(failed(error, committed_below)), committed_below),
    }
}

/// The error of a send that failed with `error`. Marks the enclosing send if work is committed.
fn failed<T, E: fmt::Display>(error: SendError<T, E>, committed_below: bool) -> SendError<T, E> {
    let error = match committed_below {
        true => error.after_commit(),
        false => error,
    };
    if matches!(error, SendError::Undelivered(_)) || committed_below {
        let level = LEVEL.get();
        if level.is_tracked() {
            LEVEL.set(Level(level.0 | COMMITTED_BELOW));
        }
    }
    error
}

/// Runs code that may send. The second value is that of [`nested`].
pub(crate) fn track_commits<T>(
    code: Pin<&mut impl Future<Output = T>>,
) -> impl Future<Output = (T, bool)> {
    run(code, 0)
}

fn run<T>(
    mut code: Pin<&mut impl Future<Output = T>>,
    deeper: u32,
) -> impl Future<Output = (T, bool)> {
    let mut mark = 0;
    poll_fn(move |cx| {
        let enclosing = Enclosing(LEVEL.get());
        let depth = enclosing.0.0 & !(TRACKED | COMMITTED_BELOW);
        LEVEL.set(Level((depth + deeper) | TRACKED | mark));
        let polled = code.as_mut().poll(cx);
        mark = LEVEL.get().0 & COMMITTED_BELOW;
        polled.map(|result| (result, mark != 0))
    })
}
