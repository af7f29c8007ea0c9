//! The count of running sends, closed by a mediator's shutdown.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// Counts the running sends, and refuses new ones once it is closed.
///
/// Each of the first threads that send counts the sends that it admits and ends in a slot of its own; a send that moves
/// to another thread leaves a one in the first slot and takes it from the second. Only the sum means something, and
/// only [`close`](Self::close) needs it.
///
/// Invariant: a slot has one writer, so that it needs no atomic addition. A send counts first and reads `closed` then;
/// the closing sets `closed` first and reads the slots then. Both are sequentially consistent, so one of them sees the
/// other: a send is either refused or awaited.
#[derive(Debug)]
pub(crate) struct Gate {
    slots: Box<[Slot]>,
    /// The count of the threads without a slot.
    shared: Slot,
    closed: AtomicBool,
    /// Set when the time for running sends is over: they must not commit.
    over: AtomicBool,
}

/// The count of one thread, in a cache line of its own. It wraps.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot(AtomicUsize);

/// The number of slots. All later threads share one count, since numbers of threads that ended are not used again.
const SLOTS: usize = 32;
/// The pause between two looks at the count, while a closed gate waits.
const PAUSE: Duration = Duration::from_millis(1);

static THREADS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// The thread's number, from 1 on, for the life of the process.
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

/// A running send. Must outlive its scope, whose drop may start a rollback.
#[derive(Debug)]
pub(crate) struct Entered<'g>(&'g Gate);

impl Default for Gate {
    fn default() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            shared: Slot::default(),
            closed: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }
}

impl Gate {
    /// `None` once the gate is closed.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Entered<'_>> {
        // So that callers who are refused again and again do not keep the sum from 0.
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        match self.slot() {
            Some(Slot(count)) => {
                count.swap(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::SeqCst)
            }
            None => self.shared.0.fetch_add(1, Ordering::SeqCst),
        };
        let entered = Entered(self);
        (!self.closed.load(Ordering::SeqCst)).then_some(entered)
    }

    /// The slot of the calling thread.
    #[inline]
    fn slot(&self) -> Option<&Slot> {
        let thread = match THREAD.get() {
            0 => number_thread(),
            thread => thread,
        };
        self.slots.get(thread as usize - 1)
    }

    pub(crate) fn running(&self) -> usize {
        let slots = self.slots.iter().map(|Slot(count)| count.load(Ordering::SeqCst));
        slots.fold(self.shared.0.load(Ordering::SeqCst), usize::wrapping_add)
    }

    /// Refuses new sends, and waits up to `within` for the running ones.
    pub(crate) async fn close(&self, within: Duration) {
        self.closed.store(true, Ordering::SeqCst);
        let all_left = async {
            while self.running() != 0 {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let _in_time = tokio::time::timeout(within, all_left).await;
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

#[cold]
fn number_thread() -> u32 {
    let number = THREADS.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    THREAD.set(number);
    number
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.0.slot() {
            Some(Slot(count)) => {
                count.store(count.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Release)
            }
            None => drop(self.0.shared.0.fetch_sub(1, Ordering::Release)),
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

    #[test]
    fn send_may_leave_on_another_thread() {
        let gate = Gate::default();
        let inside = gate.enter();
        std::thread::scope(|threads| {
            threads.spawn(|| drop((inside, gate.enter())));
        });
        assert_eq!(gate.running(), 0);
    }

    #[test]
    fn threads_without_a_slot_are_counted() {
        let gate = Gate::default();
        std::thread::scope(|threads| {
            for thread in [SLOTS, SLOTS + 1, SLOTS + 1, SLOTS + 2] {
                let gate = &gate;
                threads.spawn(move || {
                    THREAD.set(thread as u32);
                    drop(gate.enter());
                    std::mem::forget(gate.enter());
                });
            }
        });
        assert_eq!(gate.running(), 4);
    }

    #[test]
    fn refused_callers_do_not_hold_up_the_close() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (gate, is_closed) = (Gate::default(), AtomicBool::new(false));
        gate.closed.store(true, Ordering::SeqCst);
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    while !is_closed.load(Ordering::Relaxed) {
                        assert!(gate.enter().is_none());
                    }
                });
            }
            for _ in 0..20 {
                assert_eq!(gate.running(), 0, "a refused caller counts");
                std::thread::yield_now();
            }
            runtime.block_on(gate.close(Duration::from_secs(60)));
            is_closed.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn no_send_runs_once_close_returned() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for _ in 0..50 {
            let (gate, is_closed) = (Gate::default(), AtomicBool::new(false));
            std::thread::scope(|threads| {
                for _ in 0..3 {
                    threads.spawn(|| {
                        while let Some(_entered) = gate.enter() {
                            assert!(!is_closed.load(Ordering::SeqCst), "admitted and not awaited");
                        }
                    });
                }
                while gate.running() == 0 {
                    std::thread::yield_now();
                }
                runtime.block_on(gate.close(Duration::from_secs(60)));
                is_closed.store(true, Ordering::SeqCst);
            });
            assert_eq!(gate.running(), 0);
        }
    }
}
