//! The count of running sends, closed by a mediator's shutdown.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Counts the running sends, and refuses new ones once it is closed.
///
/// Invariant: the lowest bit of `state` is "closed", the others count [`Entered`] values. Both change in
/// one atomic step, so a send is either refused or awaited.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: AtomicUsize,
    left: Notify,
    /// Set when the time for running sends is over: they must not commit.
    over: AtomicBool,
}

const CLOSED: usize = 1;
const ONE: usize = 2;

/// A running send. Must outlive its scope, whose drop may start a rollback.
#[derive(Debug)]
pub(crate) struct Entered<'g>(&'g Gate);

impl Gate {
    /// `None` once the gate is closed.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Entered<'_>> {
        let entered = Entered(self);
        match self.state.fetch_add(ONE, Ordering::AcqRel) & CLOSED {
            0 => Some(entered),
            _ => None,
        }
    }

    pub(crate) fn running(&self) -> usize {
        self.state.load(Ordering::Acquire) / ONE
    }

    /// Refuses new sends, and waits up to `within` for the running ones.
    pub(crate) async fn close(&self, within: Duration) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        let all_left = async {
            loop {
                let left = self.left.notified();
                if self.running() == 0 {
                    return;
                }
                left.await;
            }
        };
        let _in_time = tokio::time::timeout(within, all_left).await;
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.0.state.fetch_sub(ONE, Ordering::AcqRel) == ONE | CLOSED {
            self.0.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn closed_gate_awaits_running_and_refuses_new_sends() {
        let gate = Gate::default();
        let inside = gate.enter().unwrap();
        let close = gate.close(Duration::from_secs(60));
        let leave = async {
            tokio::task::yield_now().await;
            assert!(gate.enter().is_none(), "closed");
            assert_eq!(gate.running(), 1, "a refused one does not count");
            assert!(!gate.is_over());
            drop(inside);
        };
        let start = tokio::time::Instant::now();
        tokio::join!(close, leave);
        assert!(gate.is_over() && start.elapsed() < Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn close_waits_for_running_sends_within_a_bound() {
        let gate = Gate::default();
        let inside = gate.enter();
        gate.close(Duration::from_secs(5)).await;
        assert!(inside.is_some() && gate.is_over());
        assert_eq!(gate.running(), 1);
    }
}
