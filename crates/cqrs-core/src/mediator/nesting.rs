//! The nesting of sends in one task: its depth, and whether a nested send committed work.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

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

/// As `LEVEL.set`, which compilers do not always inline.
#[inline]
fn set_level(level: Level) {
    LEVEL.with(|cell| cell.set(level));
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
        set_level(self.0);
    }
}

/// The level of one send, and the mark that nested sends leave in it between its polls.
#[derive(Default)]
pub(crate) struct SendLevel {
    mark: u32,
}

impl SendLevel {
    /// Calls a part of the send that is no future, such as what a handler does before it returns its own, and counts
    /// the send in [`nesting`] meanwhile.
    #[inline]
    pub(crate) fn call<T>(&mut self, part: impl FnOnce() -> T) -> T {
        at_level(SEND, &mut self.mark, part)
    }

    /// Runs a part of the send, and counts the send in [`nesting`] while that is polled.
    #[inline]
    pub(super) fn run<F: Future + Unpin>(&mut self, part: F) -> AtLevel<'_, F> {
        AtLevel { code: part, deeper: SEND, mark: &mut self.mark }
    }

    /// `true` if a nested send committed its work without publishing the events.
    #[inline]
    pub(super) fn committed_below(&self) -> bool {
        self.mark != 0
    }

    /// The error of this send, which failed with `error`. If a nested send committed its work, the error says so,
    /// unless it is that of a handler or a middleware, and the enclosing send is marked.
    pub(super) fn failed<T, E: fmt::Display>(&self, error: SendError<T, E>) -> SendError<T, E> {
        failed(error, self.committed_below())
    }
}

/// Runs a send as [`SendLevel`] does.
pub(super) async fn nested<T, E: fmt::Display>(
    send: Pin<&mut impl Future<Output = Result<T, SendError<T, E>>>>,
) -> Result<T, SendError<T, E>> {
    let mut level = SendLevel::default();
    level.run(send).await.map_err(|error| level.failed(error))
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
            set_level(Level(level.0 | COMMITTED_BELOW));
        }
    }
    error
}

/// Runs code that may send. The second value is `true` if a nested send committed its work without publishing the
/// events.
pub(crate) async fn track_commits<T>(code: Pin<&mut impl Future<Output = T>>) -> (T, bool) {
    let mut mark = 0;
    let result = AtLevel { code, deeper: 0, mark: &mut mark }.await;
    (result, mark != 0)
}

/// Code that runs at its own level.
pub(super) struct AtLevel<'l, F> {
    code: F,
    deeper: u32,
    mark: &'l mut u32,
}

impl<F: Future + Unpin> Future for AtLevel<'_, F> {
    type Output = F::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { code, deeper, mark } = &mut *self;
        at_level(*deeper, mark, || Pin::new(code).poll(cx))
    }
}

#[inline]
fn at_level<T>(deeper: u32, mark: &mut u32, code: impl FnOnce() -> T) -> T {
    let enclosing = Enclosing(LEVEL.get());
    let depth = enclosing.0.0 & !(TRACKED | COMMITTED_BELOW);
    set_level(Level((depth + deeper) | TRACKED | *mark));
    let result = code();
    *mark = LEVEL.get().0 & COMMITTED_BELOW;
    result
}
