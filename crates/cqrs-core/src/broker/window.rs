//! The bound on unconfirmed messages and bytes of a broker value, used by the intake.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::number_ring::NumberRing;

/// The bound on the messages and bytes that one broker value has in flight.
///
/// A full window makes `enqueue` wait (in order of arrival) and `try_enqueue` fail with `Full`. A message
/// larger than the whole byte window counts as the whole: it is sent alone instead of never.
///
/// Invariants:
/// * Each message and byte in flight is held by exactly one [`Slot`], which frees it on drop. So neither a
///   cancelled wait nor a panic can leak a slot.
/// * `WAITS` is set while a wait is queued, and both change under the lock. While it is set only waits get slots,
///   the oldest first, and each slot that is freed lets them try. A wait tries once after it set the bit; so no
///   slot that was freed before is missed.
#[derive(Debug, Clone)]
pub struct Window(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bytes in flight in the lower half, messages in the upper half below the bits `CLOSED` and `WAITS`. One
    /// number, so that a slot takes one atomic operation.
    taken: AtomicU64,
    max_messages: u32,
    max_bytes: u32,
    waits: Mutex<NumberRing<Wait>>,
}

/// A message that waits for its slot.
#[derive(Debug)]
struct Wait {
    bytes: u32,
    slot: oneshot::Sender<Slot>,
}

/// A message's slot in the [`Window`]; dropping it frees the slot.
#[derive(Debug)]
#[must_use = "dropping the slot frees the slot in the window"]
pub struct Slot {
    window: Arc<Inner>,
    bytes: u32,
}

const MESSAGE: u64 = 1 << 32;
const CLOSED: u64 = 1 << 62;
const WAITS: u64 = 1 << 63;
const MAX_MESSAGES: u32 = (1 << 30) - 1;

impl Window {
    /// Messages in flight by default (README, Guarantees).
    pub const DEFAULT_MESSAGES: usize = 1_000;
    /// Bytes in flight by default: 16 MiB.
    pub const DEFAULT_BYTES: usize = 16 * 1024 * 1024;

    /// A window of `messages` and `bytes`. Zero is read as one, more than 2^30 - 1 messages as that many, and more
    /// than `u32::MAX` bytes as `u32::MAX`.
    pub fn new(messages: usize, bytes: usize) -> Self {
        let at_most = |value, most| u32::try_from(value).map_or(most, |value| value.clamp(1, most));
        Self(Arc::new(Inner {
            taken: AtomicU64::new(0),
            max_messages: at_most(messages, MAX_MESSAGES),
            max_bytes: at_most(bytes, u32::MAX),
            waits: Mutex::default(),
        }))
    }

    /// Waits for a slot for a message of `bytes`; `None` once the window is closed.
    ///
    /// Slots are given in order of arrival. Cancel safe: a cancelled wait holds nothing.
    pub async fn acquire(&self, bytes: usize) -> Option<Slot> {
        if let Some(slot) = self.try_acquire(bytes) {
            return Some(slot);
        }
        let mut wait = self.0.queue(self.clamp(bytes))?;
        (&mut wait.slot).await.ok()
    }

    /// Takes a slot now; `None` if the window is full or closed.
    pub fn try_acquire(&self, bytes: usize) -> Option<Slot> {
        let bytes = self.clamp(bytes);
        self.0.take(bytes, CLOSED | WAITS).then(|| self.0.slot(bytes))
    }

    /// Ends all waits, now and later. Existing slots stay valid.
    pub fn close(&self) {
        let waits = {
            let mut waits = self.0.waits();
            self.0.taken.fetch_or(CLOSED, Ordering::AcqRel);
            self.0.taken.fetch_and(!WAITS, Ordering::AcqRel);
            waits.take_all()
        };
        // Wakes them.
        drop(waits);
    }

    /// `true` once [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.0.taken.load(Ordering::Acquire) & CLOSED != 0
    }

    /// The number of messages that hold a slot.
    pub fn in_flight(&self) -> usize {
        messages(self.0.taken.load(Ordering::Acquire)) as usize
    }

    /// The bytes that hold a slot.
    pub fn bytes_in_flight(&self) -> usize {
        bytes(self.0.taken.load(Ordering::Acquire)) as usize
    }

    fn clamp(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.0.max_bytes)
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new(Self::DEFAULT_MESSAGES, Self::DEFAULT_BYTES)
    }
}

fn messages(taken: u64) -> u32 {
    (taken >> 32) as u32 & MAX_MESSAGES
}

fn bytes(taken: u64) -> u32 {
    taken as u32
}

impl Inner {
    /// Counts a message if it fits and no bit of `unless` is set.
    fn take(&self, size: u32, unless: u64) -> bool {
        let take = |taken: u64| {
            let fits = taken & unless == 0
                && messages(taken) < self.max_messages
                && bytes(taken).checked_add(size).is_some_and(|sum| sum <= self.max_bytes);
            fits.then(|| taken + MESSAGE + u64::from(size))
        };
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    fn slot(self: &Arc<Self>, bytes: u32) -> Slot {
        Slot { window: Arc::clone(self), bytes }
    }

    /// Queues a wait; `None` once the window is closed.
    fn queue(self: &Arc<Self>, bytes: u32) -> Option<Waiting<'_>> {
        let (sender, slot) = oneshot::channel();
        let number = {
            let mut waits = self.waits();
            // Set under the lock.
            if self.taken.load(Ordering::Acquire) & CLOSED != 0 {
                return None;
            }
            self.taken.fetch_or(WAITS, Ordering::AcqRel);
            waits.push(Wait { bytes, slot: sender })
        };
        self.serve();
        Some(Waiting { window: self, number, slot })
    }

    /// Gives slots to the oldest waits, as far as they fit.
    fn serve(self: &Arc<Self>) {
        let mut served = Vec::new();
        {
            let mut waits = self.waits();
            let oldest =
                |waits: &NumberRing<Wait>| waits.iter().next().map(|(n, wait)| (n, wait.bytes));
            while let Some((number, bytes)) = oldest(&waits)
                && self.take(bytes, CLOSED)
            {
                let slot = self.slot(bytes);
                served.extend(waits.remove(number).map(|wait| (wait, slot)));
            }
            if waits.is_empty() {
                self.taken.fetch_and(!WAITS, Ordering::AcqRel);
            }
        }
        for (wait, slot) in served {
            // The slot of a cancelled wait is freed, which serves the next ones.
            drop(wait.slot.send(slot));
        }
    }

    fn waits(&self) -> MutexGuard<'_, NumberRing<Wait>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queued wait; dropping it removes it.
struct Waiting<'w> {
    window: &'w Arc<Inner>,
    number: u64,
    slot: oneshot::Receiver<Slot>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let removed = self.window.waits().remove(self.number);
        if removed.is_some() {
            // Those behind it may fit.
            self.window.serve();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let freed = MESSAGE + u64::from(self.bytes);
        if self.window.taken.fetch_sub(freed, Ordering::AcqRel) & WAITS != 0 {
            self.window.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn full_in_messages_and_full_in_bytes() {
        let window = Window::new(2, 100);
        let first = window.try_acquire(10).unwrap();
        let second = window.try_acquire(10).unwrap();
        assert!(window.try_acquire(0).is_none(), "third message");
        drop(second);
        assert!(window.try_acquire(91).is_none(), "byte 101");
        let exact = window.try_acquire(90).unwrap();
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (2, 100));
        drop((first, exact));
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (0, 0));
    }

    #[tokio::test]
    async fn awaited_place_counts_messages_and_bytes() {
        let window = Window::new(2, 100);
        let slot = window.acquire(60).await.unwrap();
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (1, 60));
        assert!(window.try_acquire(41).is_none(), "byte 101");
        drop(slot);
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (0, 0));
        let all = window.try_acquire(100).unwrap();
        assert!(window.try_acquire(1).is_none(), "not one byte more than there were");
        drop(all);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_window_goes_alone() {
        let window = Window::new(10, 100);
        let small = window.try_acquire(1).unwrap();
        assert!(window.try_acquire(1_000).is_none());
        drop(small);
        let large = window.try_acquire(1_000).unwrap();
        assert!(window.try_acquire(1).is_none());
        drop(large);
        assert!(window.try_acquire(1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_wait_leaks_no_slot() {
        let window = Window::new(2, 10);
        let held = window.try_acquire(10).unwrap();
        let wait = tokio::time::timeout(std::time::Duration::from_millis(1), window.acquire(5));
        assert!(wait.await.is_err());
        assert_eq!(window.in_flight(), 1);
        drop(held);
        assert!(window.acquire(10).await.is_some());
    }

    #[tokio::test]
    async fn closing_ends_waits() {
        let window = Window::new(1, 10);
        let held = window.try_acquire(1).unwrap();
        let waiting = tokio::spawn({
            let window = window.clone();
            async move { window.acquire(1).await.is_none() }
        });
        tokio::task::yield_now().await;
        window.close();
        assert!(waiting.await.unwrap());
        drop(held);
        assert!(window.try_acquire(1).is_none());
    }

    #[test]
    fn sizes_are_bounded() {
        let window = Window::new(0, 0);
        let only = window.try_acquire(0).unwrap();
        assert!(window.try_acquire(0).is_none(), "one message");
        drop(only);
        let window = Window::new(usize::MAX, usize::MAX);
        let large = window.try_acquire(usize::MAX).unwrap();
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (1, u32::MAX as usize));
        assert!(window.try_acquire(1).is_none());
        let _empty = window.try_acquire(0).unwrap();
        drop(large);
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (1, 0));
    }

    #[tokio::test]
    async fn new_message_does_not_overtake_a_wait() {
        let window = Window::new(10, 100);
        let held = window.try_acquire(60).unwrap();
        let mut large = Box::pin(window.acquire(50));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(window.try_acquire(1).is_none(), "a byte is free, but another one waits");
        let mut behind = Box::pin(window.acquire(30));
        assert!(behind.as_mut().now_or_never().is_none());
        drop(held);
        let large = large.await.unwrap();
        let behind = behind.await.unwrap();
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (2, 80));
        drop((large, behind));
        assert!(window.try_acquire(100).is_some());
    }

    #[tokio::test]
    async fn slot_freed_before_a_wait_is_queued_is_not_missed() {
        let window = Window::new(1, 10);
        drop(window.try_acquire(1).unwrap());
        let mut wait = window.0.queue(1).unwrap();
        assert!((&mut wait.slot).now_or_never().is_some());
    }

    #[tokio::test]
    async fn cancelled_wait_lets_those_behind_it_through() {
        let window = Window::new(10, 100);
        let _held = window.try_acquire(60).unwrap();
        let mut large = Box::pin(window.acquire(50));
        assert!(large.as_mut().now_or_never().is_none());
        let mut behind = Box::pin(window.acquire(40));
        assert!(behind.as_mut().now_or_never().is_none());
        drop(large);
        assert!(behind.as_mut().now_or_never().is_some());
        // A wait that is cancelled after it got its slot.
        let full = window.try_acquire(40).unwrap();
        let mut served = Box::pin(window.acquire(40));
        assert!(served.as_mut().now_or_never().is_none());
        drop(full);
        assert_eq!(window.bytes_in_flight(), 100);
        drop(served);
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (1, 60));
    }

    /// Threads that take, wait, cancel and free at the same time. The bounds hold at any time, every wait ends, and
    /// at the end everything is free.
    #[test]
    fn bounds_hold_and_no_wait_is_lost_on_many_threads() {
        const MESSAGES: usize = 3;
        const BYTES: usize = 100;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .unwrap();
        let window = Window::new(MESSAGES, BYTES);
        let held = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..16_usize)
            .map(|task| {
                let (window, held) = (window.clone(), Arc::clone(&held));
                runtime.spawn(async move {
                    for round in 0..4_000_usize {
                        let bytes = (task * 31 + round * 17) % 60;
                        let slot = match (task + round) % 4 {
                            0 => window.try_acquire(bytes),
                            1 => {
                                // Cancelled at the second poll.
                                let yielded = tokio::task::yield_now();
                                tokio::select! {
                                    biased;
                                    slot = window.acquire(bytes) => slot,
                                    () = yielded => None,
                                }
                            }
                            _ => window.acquire(bytes).await,
                        };
                        let Some(slot) = slot else { continue };
                        let mine = MESSAGE + bytes as u64;
                        let all = held.fetch_add(mine, Ordering::SeqCst) + mine;
                        assert!(
                            messages(all) as usize <= MESSAGES
                                && super::bytes(all) as usize <= BYTES
                        );
                        if round % 3 == 0 {
                            tokio::task::yield_now().await;
                        }
                        held.fetch_sub(mine, Ordering::SeqCst);
                        drop(slot);
                    }
                })
            })
            .collect();
        runtime.block_on(async {
            for task in tasks {
                let ended = tokio::time::timeout(std::time::Duration::from_secs(60), task).await;
                ended.expect("a wait was lost").unwrap();
            }
        });
        assert_eq!((window.in_flight(), window.bytes_in_flight()), (0, 0));
        assert!(window.0.waits().is_empty());
        assert!(window.try_acquire(BYTES).is_some());
    }
}
