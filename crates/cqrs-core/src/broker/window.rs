//! The bound on unconfirmed messages and bytes of a broker value, used by the intake.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// The bound on the messages and bytes that one broker value has in flight.
///
/// A full window makes `enqueue` wait (in order of arrival) and `try_enqueue` fail with `Full`. A message
/// larger than the whole byte window counts as the whole: it is sent alone instead of never.
///
/// Invariant: each message and byte in flight is held by exactly one [`Slot`], which frees it on drop. So
/// neither a cancelled wait nor a panic can leak a slot.
#[derive(Debug, Clone)]
pub struct Window(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    messages: Semaphore,
    bytes: Semaphore,
    max_messages: usize,
    max_bytes: u32,
}

/// A message's slot in the [`Window`]; dropping it frees the slot.
#[derive(Debug)]
#[must_use = "dropping the slot frees the slot in the window"]
pub struct Slot {
    window: Arc<Inner>,
    bytes: u32,
}

impl Window {
    /// Messages in flight by default (README, Guarantees).
    pub const DEFAULT_MESSAGES: usize = 1_000;
    /// Bytes in flight by default: 16 MiB.
    pub const DEFAULT_BYTES: usize = 16 * 1024 * 1024;

    /// A window of `messages` and `bytes`. Zero is read as one, and more than `u32::MAX` bytes as
    /// `u32::MAX`.
    pub fn new(messages: usize, bytes: usize) -> Self {
        let max_messages = messages.clamp(1, Semaphore::MAX_PERMITS);
        let max_bytes = u32::try_from(bytes.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self(Arc::new(Inner {
            messages: Semaphore::new(max_messages),
            bytes: Semaphore::new(max_bytes as usize),
            max_messages,
            max_bytes,
        }))
    }

    /// Waits for a slot for a message of `bytes`; `None` once the window is closed.
    ///
    /// Slots are given in order of arrival. Cancel safe: a cancelled wait holds nothing.
    pub async fn acquire(&self, bytes: usize) -> Option<Slot> {
        let bytes = self.clamp(bytes);
        let message = self.0.messages.acquire().await.ok()?;
        let size = self.0.bytes.acquire_many(bytes).await.ok()?;
        message.forget();
        size.forget();
        Some(self.slot(bytes))
    }

    /// Takes a slot now; `None` if the window is full or closed.
    pub fn try_acquire(&self, bytes: usize) -> Option<Slot> {
        let bytes = self.clamp(bytes);
        let message = self.0.messages.try_acquire().ok()?;
        let size = self.0.bytes.try_acquire_many(bytes).ok()?;
        message.forget();
        size.forget();
        Some(self.slot(bytes))
    }

    /// Ends all waits, now and later. Existing slots stay valid.
    pub fn close(&self) {
        self.0.messages.close();
        self.0.bytes.close();
    }

    /// `true` once [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.0.messages.is_closed()
    }

    /// The number of messages that hold a slot.
    pub fn in_flight(&self) -> usize {
        self.0.max_messages.saturating_sub(self.0.messages.available_permits())
    }

    /// The bytes that hold a slot.
    pub fn bytes_in_flight(&self) -> usize {
        (self.0.max_bytes as usize).saturating_sub(self.0.bytes.available_permits())
    }

    fn clamp(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.0.max_bytes)
    }

    fn slot(&self, bytes: u32) -> Slot {
        Slot { window: Arc::clone(&self.0), bytes }
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new(Self::DEFAULT_MESSAGES, Self::DEFAULT_BYTES)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.window.bytes.add_permits(self.bytes as usize);
        self.window.messages.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
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
        assert!(window.try_acquire(100).is_some());
        assert_eq!(window.0.bytes.available_permits(), 100, "not one more than there were");
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
}
