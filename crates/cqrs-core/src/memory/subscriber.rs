use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::group::{Entry, Member};
use super::topic::{Taken, Topic};
use crate::consume::RetryState;
use crate::message::Message;

/// One member of a group; its members share the group's messages.
///
/// Dropping it changes nothing for the deliveries it handed out.
pub struct MemorySubscriber {
    topic: Arc<Topic>,
    group: u64,
    member: Member,
    signal: Arc<Notify>,
}

/// A subscriber's place in its group.
pub(super) struct Membership {
    topic: Arc<Topic>,
    group: u64,
    member: u64,
}

impl Membership {
    /// Gives back all that the subscriber handed out, whoever holds on to it.
    pub(super) fn leave(&self) {
        self.topic.leave(self.group, self.member);
    }
}

impl MemorySubscriber {
    pub(super) fn new(topic: Arc<Topic>, group: u64, signal: Arc<Notify>) -> Self {
        static MEMBERS: AtomicU64 = AtomicU64::new(0);
        let id = MEMBERS.fetch_add(1, Ordering::Relaxed);
        Self { topic, group, member: Member { id, keeps_order: false }, signal }
    }

    /// Several messages of one key may be handed out to it at once; it keeps their order.
    pub(super) fn keeping_order(mut self) -> Self {
        self.member.keeps_order = true;
        self
    }

    pub(super) fn membership(&self) -> Membership {
        let topic = Arc::clone(&self.topic);
        Membership { topic, group: self.group, member: self.member.id }
    }

    /// The next message; `None` once nothing can come any more: the broker is shut down (or dropped)
    /// and its group settled everything, or the group was deleted.
    ///
    /// After a shutdown it waits for deliveries that are out, because they may be given back. Whoever
    /// collects several before settling them should therefore not wait for `None` with them in hand.
    ///
    /// Cancel safe: a cancelled call took nothing.
    pub async fn recv(&self) -> Option<MemoryDelivery> {
        // A topic with much in it must not keep the task from yielding.
        tokio::task::coop::consume_budget().await;
        loop {
            // Made before looking, so that it hears of everything that comes after the look.
            let changed = self.signal.notified();
            match self.topic.take(self.group, self.member) {
                Taken::Entry(entry) => return Some(self.delivery(entry)),
                Taken::Ended => return None,
                Taken::Empty => changed.await,
            }
        }
    }

    /// The next message, if there is one now.
    pub fn try_recv(&self) -> Option<MemoryDelivery> {
        match self.topic.take(self.group, self.member) {
            Taken::Entry(entry) => Some(self.delivery(entry)),
            Taken::Empty | Taken::Ended => None,
        }
    }

    fn delivery(&self, entry: Entry) -> MemoryDelivery {
        let topic = Arc::clone(&self.topic);
        MemoryDelivery { topic, group: self.group, entry, settled: false }
    }
}

impl fmt::Debug for MemorySubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySubscriber").field("group", &self.group).finish_non_exhaustive()
    }
}

/// A message in one subscriber's hands. Dropped, it is given back, never acked.
#[must_use = "dropping it gives the message back"]
pub struct MemoryDelivery {
    topic: Arc<Topic>,
    group: u64,
    entry: Entry,
    settled: bool,
}

impl MemoryDelivery {
    /// The message as it was published.
    pub fn message(&self) -> &Message {
        &self.entry.message
    }

    /// How often this message was handed out in this group, counting this time: 1 at first.
    pub fn attempt(&self) -> u32 {
        self.entry.attempt
    }

    /// Whether it was handed out before.
    pub fn redelivered(&self) -> bool {
        self.entry.attempt > 1
    }

    /// The message's place in its topic: later messages have greater ones.
    pub fn offset(&self) -> u64 {
        self.entry.offset
    }

    pub(super) fn retry(&self) -> RetryState {
        self.entry.retry
    }

    /// Whether it is a copy that waited for this attempt.
    pub(super) fn delayed(&self) -> bool {
        self.entry.delayed
    }

    /// Kept for whoever gets it next, if it comes again.
    pub(super) fn set_retry(&mut self, retry: RetryState) {
        self.entry.retry = retry;
        self.topic.set_retry(self.group, self.entry.tag, retry);
    }

    /// A copy comes after `delay`, with `retry`.
    pub(super) fn schedule(&self, delay: Duration, retry: RetryState) {
        let entry = Entry { retry, delayed: true, ..self.entry.clone() };
        self.topic.schedule(self.group, entry, delay);
    }

    /// Whether it was neither settled nor taken away ([`MemoryFaults::revoke`](super::MemoryFaults)).
    pub(super) fn is_in_flight(&self) -> bool {
        self.topic.is_in_flight(self.group, self.entry.tag)
    }

    /// As [`ack`](Self::ack). `false` when it was taken away.
    pub(super) fn settle(mut self) -> bool {
        self.settled = true;
        self.topic.settle(self.group, self.entry.tag)
    }

    /// It is done: this group does not see it again, and the next one of its key is handed out.
    ///
    /// Does nothing once it was taken away by [`MemoryFaults::revoke`](super::MemoryFaults::revoke).
    pub fn ack(self) {
        self.settle();
    }

    /// Gives it back, as dropping it does: it comes again, before anything later of its key.
    pub fn nack(self) {}
}

impl Drop for MemoryDelivery {
    fn drop(&mut self) {
        if !self.settled {
            self.topic.give_back(self.group, self.entry.tag);
        }
    }
}

impl fmt::Debug for MemoryDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDelivery")
            .field("message", &self.entry.message)
            .field("attempt", &self.entry.attempt)
            .finish_non_exhaustive()
    }
}
