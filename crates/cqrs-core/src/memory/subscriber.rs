//! A subscriber of one group of a topic, and its deliveries.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::group::{Entry, Member, Tag};
use super::stored::StoredMessage;
use super::topic::{Taken, Topic};
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

/// The deliveries of one topic to a source. Several of one key may be in flight at once, because the runtime
/// keeps their order itself.
///
/// Dropped, it leaves the group as after a crash: its deliveries in flight are revoked.
pub(super) struct Deliveries {
    subscriber: MemorySubscriber,
    /// Waits for a change of the group. Set only while the last poll found no message: a registered waiter
    /// that does not wait would take the wake-up of another member.
    changed: Pin<Box<Option<OwnedNotified>>>,
}

impl Deliveries {
    pub(super) fn topic(&self) -> &Arc<Topic> {
        &self.subscriber.topic
    }

    pub(super) fn group(&self) -> u64 {
        self.subscriber.group
    }

    /// Takes the next messages, at most `max`, and returns `true`; `false` after the last one, as
    /// [`MemorySubscriber::recv`]. `deliver` is called under the lock of the topic.
    pub(super) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        mut deliver: impl FnMut(Tag, &Entry),
    ) -> Poll<bool> {
        loop {
            match self.subscriber.take(max, &mut deliver) {
                Taken::Some => {
                    self.stop_waiting();
                    return Poll::Ready(true);
                }
                Taken::Ended => return Poll::Ready(false),
                Taken::Empty => {}
            }
            match self.changed.as_mut().as_pin_mut() {
                Some(changed) => {
                    ready!(changed.poll(cx));
                    self.stop_waiting();
                }
                // Registered before the next check, so that no later wake-up is missed.
                None => {
                    let signal = Arc::clone(&self.subscriber.signal);
                    self.changed.set(Some(signal.notified_owned()));
                }
            }
        }
    }

    /// Unregisters. A wake-up that came already goes to another member.
    pub(super) fn stop_waiting(&mut self) {
        if self.changed.is_some() {
            self.changed.set(None);
        }
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        let MemorySubscriber { topic, group, member, .. } = &self.subscriber;
        topic.leave(*group, member.id);
    }
}

impl MemorySubscriber {
    pub(super) fn new(topic: Arc<Topic>, group: u64, signal: Arc<Notify>) -> Self {
        static MEMBERS: AtomicU64 = AtomicU64::new(0);
        let id = MEMBERS.fetch_add(1, Ordering::Relaxed);
        Self { topic, group, member: Member { id, keeps_order: false }, signal }
    }

    pub(super) fn into_deliveries(mut self) -> Deliveries {
        self.member.keeps_order = true;
        Deliveries { subscriber: self, changed: Box::pin(None) }
    }

    fn take(&self, max: usize, deliver: impl FnMut(Tag, &Entry)) -> Taken {
        self.topic.take(self.group, self.member, max, deliver)
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
            let mut delivery = None;
            match self.take(1, |tag, entry| delivery = Some(self.delivery(tag, entry))) {
                Taken::Some => return delivery,
                Taken::Ended => return None,
                Taken::Empty => changed.await,
            }
        }
    }

    /// The next message, if there is one now.
    pub fn try_recv(&self) -> Option<MemoryDelivery> {
        let mut delivery = None;
        self.take(1, |tag, entry| delivery = Some(self.delivery(tag, entry)));
        delivery
    }

    fn delivery(&self, tag: Tag, entry: &Entry) -> MemoryDelivery {
        let topic = Arc::clone(&self.topic);
        let (offset, message, attempt) = (entry.offset, entry.message.clone(), entry.attempt);
        MemoryDelivery { topic, group: self.group, tag, offset, message, attempt, settled: false }
    }
}

crate::debug_fields!(MemorySubscriber { group });

/// A message delivered to one subscriber. Dropped, it is given back, never acked.
#[must_use = "dropping it gives the message back"]
pub struct MemoryDelivery {
    topic: Arc<Topic>,
    group: u64,
    tag: Tag,
    offset: u64,
    message: StoredMessage,
    attempt: u32,
    settled: bool,
}

impl MemoryDelivery {
    /// The message as it was published.
    pub fn message(&self) -> &Message {
        self.message.message()
    }

    /// The number of deliveries of this message in this group, including this one: 1 at first.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// `true` if it was delivered before.
    pub fn redelivered(&self) -> bool {
        self.attempt > 1
    }

    /// The message's offset in its topic.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Settles it: the group does not receive it again, and the next message of its key is delivered.
    ///
    /// Does nothing if it was revoked by [`MemoryFaults::revoke`](super::MemoryFaults::revoke).
    pub fn ack(mut self) {
        self.settled = self.topic.settle(self.group, self.tag);
    }

    /// Gives it back, as dropping it does: it is redelivered before the later messages of its key.
    pub fn nack(self) {}
}

impl Drop for MemoryDelivery {
    fn drop(&mut self) {
        if !self.settled {
            self.topic.give_back(self.group, self.tag);
        }
    }
}

crate::debug_fields!(MemoryDelivery {}, |it| message: it.message(), attempt: it.attempt);
