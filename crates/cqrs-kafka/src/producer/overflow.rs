//! The queue of messages that librdkafka cannot take now. Part of the [`handle`](super::handle).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Admitted messages in order: until the first contact with the cluster, while
/// librdkafka's queue is full, and while a producer is replaced.
///
/// Invariant: while the queue is in use, every message goes through it, so none overtakes a queued one.
/// It goes out of use only under the lock and empty. Its length is bounded by the window.
#[derive(Debug)]
pub(super) struct Overflow<T> {
    in_use: AtomicBool,
    waiting: Mutex<VecDeque<T>>,
}

impl<T> Overflow<T> {
    /// An empty queue, in use.
    pub(super) fn new() -> Self {
        Self { in_use: AtomicBool::new(true), waiting: Mutex::default() }
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Acquire)
    }

    /// Queues the message if the queue is in use, else returns it.
    pub(super) fn join(&self, pending: T) -> Option<T> {
        if !self.is_in_use() {
            return Some(pending);
        }
        let mut waiting = self.lock();
        if !self.is_in_use() {
            return Some(pending);
        }
        waiting.push_back(pending);
        None
    }

    /// Queues the message and puts the queue in use.
    ///
    /// A message that is sent at the same time may come first: neither `enqueue` has resolved yet.
    pub(super) fn open(&self, pending: T) {
        let mut waiting = self.lock();
        waiting.push_back(pending);
        self.in_use.store(true, Ordering::Release);
    }

    /// Puts the queue in use.
    pub(super) fn block(&self) {
        let _waiting = self.lock();
        self.in_use.store(true, Ordering::Release);
    }

    /// Sends queued messages in order until `send` returns one. An empty queue goes out of use.
    pub(super) fn drain(&self, mut send: impl FnMut(T) -> Option<T>) {
        let mut waiting = self.lock();
        while let Some(pending) = waiting.pop_front() {
            if let Some(refused) = send(pending) {
                waiting.push_front(refused);
                return;
            }
        }
        self.in_use.store(false, Ordering::Release);
    }

    /// Puts messages before the queued ones. The queue must be in use.
    pub(super) fn put_front(&self, mut first: VecDeque<T>) {
        let mut waiting = self.lock();
        first.append(&mut waiting);
        *waiting = first;
    }

    /// Takes out the messages that `drop_it` selects. The queue stays in use.
    pub(super) fn take(&self, drop_it: impl Fn(&T) -> bool) -> Vec<T> {
        let mut waiting = self.lock();
        if !waiting.iter().any(&drop_it) {
            return Vec::new();
        }
        let (out, stay) = std::mem::take(&mut *waiting).into_iter().partition(drop_it);
        *waiting = stay;
        let out: VecDeque<_> = out;
        out.into()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use cqrs_core::Message;
    use cqrs_core::broker::{Intake, PendingConfirm};

    use super::*;

    fn message(intake: &Intake, body: &'static str) -> PendingConfirm {
        intake.try_admit(Message::new("t", body)).unwrap().0
    }

    #[test]
    fn nothing_overtakes_a_queued_message() {
        let (intake, queue) = (Intake::default(), Overflow::new());
        assert!(queue.join(message(&intake, "1")).is_none());
        assert!(queue.join(message(&intake, "2")).is_none());
        let mut sent = Vec::new();
        let mut room = 1;
        let mut send = |pending: PendingConfirm| {
            if room == 0 {
                return Some(pending);
            }
            room -= 1;
            sent.push(pending.message().body.clone());
            None
        };
        queue.drain(&mut send);
        assert!(queue.join(message(&intake, "3")).is_none(), "2 still waits");
        queue.drain(|pending| {
            sent.push(pending.message().body.clone());
            None
        });
        assert_eq!(sent, ["1", "2", "3"]);
        assert!(queue.join(message(&intake, "4")).is_some(), "out of use");
        queue.open(message(&intake, "5"));
        assert!(queue.join(message(&intake, "6")).is_none(), "in use again");
        let taken = queue.take(|pending| pending.message().body == "5");
        assert_eq!(taken.len(), 1);
        assert_eq!(queue.take(|_| true)[0].message().body, "6");
    }
}
