//! A subscriber of one group of a topic, and its deliveries.

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
/// Dropping it does not affect its deliveries.
pub struct MemorySubscriber {
    topic: Arc<Topic>,
    group: u64,
    member: Member,
    signal: Arc<Notify>,
}

/// The membership of a subscriber in its group.
pub(super) struct Membership {
    topic: Arc<Topic>,
    group: u64,
    member: u64,
}

impl Membership {
    /// Revokes the subscriber's deliveries that are in flight.
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

    /// Allows several deliveries of one key at once, for a subscriber that keeps their order itself.
    pub(super) fn keeping_order(mut self) -> Self {
        self.member.keeps_order = true;
        self
    }

    pub(super) fn membership(&self) -> Membership {
        let topic = Arc::clone(&self.topic);
        Membership { topic, group: self.group, member: self.member.id }
    }

    /// The next message; `None` after the last one: the broker is shut down (or dropped) and the group
    /// settled everything, or the group was deleted.
    ///
    /// After a shutdown it waits for deliveries in flight, because they may be given back. A caller that
    /// collects several deliveries before settling them must not wait for `None` meanwhile.
    ///
    /// Cancel safe: a cancelled call takes nothing.
    pub async fn recv(&self) -> Option<MemoryDelivery> {
        // A task that always finds a message must yield, too.
        tokio::task::coop::consume_budget().await;
        loop {
            // Registered before the check, so that no later wake-up is missed.
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

crate::debug_fields!(MemorySubscriber { group });

/// A message delivered to one subscriber. Dropped, it is given back, never acked.
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

    /// The number of deliveries of this message in this group, including this one: 1 at first.
    pub fn attempt(&self) -> u32 {
        self.entry.attempt
    }

    /// `true` if it was delivered before.
    pub fn redelivered(&self) -> bool {
        self.entry.attempt > 1
    }

    /// The message's offset in its topic.
    pub fn offset(&self) -> u64 {
        self.entry.offset
    }

    pub(super) fn retry(&self) -> RetryState {
        self.entry.retry
    }

    /// `true` for a retry copy.
    pub(super) fn delayed(&self) -> bool {
        self.entry.delayed
    }

    /// Recorded for the next delivery.
    pub(super) fn set_retry(&mut self, retry: RetryState) {
        self.entry.retry = retry;
        self.topic.set_retry(self.group, self.entry.tag, retry);
    }

    /// Adds a retry copy, delivered after `delay` with `retry`.
    pub(super) fn schedule(&self, delay: Duration, retry: RetryState) {
        let entry = Entry { retry, delayed: true, ..self.entry.clone() };
        self.topic.schedule(self.group, entry, delay);
    }

    /// `false` once it is settled or revoked ([`MemoryFaults::revoke`](super::MemoryFaults)).
    pub(super) fn is_in_flight(&self) -> bool {
        self.topic.is_in_flight(self.group, self.entry.tag)
    }

    /// As [`ack`](Self::ack). `false` if it was revoked.
    pub(super) fn settle(mut self) -> bool {
        self.settled = true;
        self.topic.settle(self.group, self.entry.tag)
    }

    /// Settles it: the group does not receive it again, and the next message of its key is delivered.
    ///
    /// Does nothing if it was revoked by [`MemoryFaults::revoke`](super::MemoryFaults::revoke).
    pub fn ack(self) {
        self.settle();
    }

    /// Gives it back, as dropping it does: it is redelivered before the later messages of its key.
    pub fn nack(self) {}
}

impl Drop for MemoryDelivery {
    fn drop(&mut self) {
        if !self.settled {
            self.topic.give_back(self.group, self.entry.tag);
        }
    }
}

crate::debug_fields!(MemoryDelivery {}, |it| message: it.entry.message, attempt: it.entry.attempt);
