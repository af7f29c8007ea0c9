//! One topic of a memory broker: the lock around its state, and the wake-ups after it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::fault_plan::FaultPlan;
use super::group::{Entry, Member, Tag, TakeResult};
use super::state::{Deferred, PublishOutcome, TopicLimits, TopicState};
use super::stored::StoredMessage;
use crate::broker::{PendingConfirm, PublishError, PublishErrorKind};
use crate::consume::support::far_deadline;
use crate::consume::{RetryState, StartAt};
use crate::message::Message;

/// A bounded log and the groups that read it.
#[derive(Debug)]
pub(super) struct Topic {
    /// Notified when a message no longer waits for room; shared by all topics of a broker.
    progress: Arc<Notify>,
    /// The number of times that deliveries were revoked. Changed under the lock.
    revocations: AtomicU64,
    state: Mutex<TopicState>,
}

/// The result of a publish under the lock.
enum Published {
    Ended(PendingConfirm, PublishOutcome),
    /// It waits for room.
    Waits,
    Rejected(PendingConfirm, PublishErrorKind, &'static str),
}

/// The result of [`Topic::take`].
#[derive(Debug)]
pub(super) enum Taken {
    Some,
    Empty,
    Ended,
}

impl Topic {
    pub(super) fn new(
        limits: TopicLimits,
        faults: Arc<FaultPlan>,
        progress: Arc<Notify>,
        closed: bool,
    ) -> Self {
        let state = Mutex::new(TopicState::new(limits, faults, closed));
        Self { progress, revocations: AtomicU64::new(0), state }
    }

    /// No user code runs under the lock, so a poisoned state is consistent.
    fn lock(&self) -> MutexGuard<'_, TopicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, change: impl FnOnce(&mut TopicState, &mut Deferred) -> R) -> R {
        let mut deferred = Deferred::default();
        let result = change(&mut self.lock(), &mut deferred);
        deferred.run(&self.progress);
        result
    }

    // ---- publishing

    /// Stores the message, or lets it wait for room when it `may_wait`.
    pub(super) fn publish(
        self: &Arc<Self>,
        pending: PendingConfirm,
        may_wait: bool,
    ) -> Result<(), PublishError> {
        let full = "its topic is full of messages that a group has not settled";
        let published = self.with(|state, deferred| {
            if state.closed {
                let detail = "shutdown was called on it";
                return Published::Rejected(pending, PublishErrorKind::Closed, detail);
            }
            if state.log.has_room() || state.is_unroutable() {
                let outcome = state.store(&pending, deferred);
                return Published::Ended(pending, outcome);
            }
            if !may_wait {
                return Published::Rejected(pending, PublishErrorKind::Full, full);
            }
            state.waiting.push_back(pending);
            self.start_expirer(state);
            Published::Waits
        });
        match published {
            Published::Ended(pending, outcome) => outcome.tell(pending),
            Published::Waits => {}
            Published::Rejected(pending, kind, detail) => return Err(pending.reject(kind, detail)),
        }
        Ok(())
    }

    pub(super) fn messages(&self) -> Vec<Message> {
        self.lock().messages().collect()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Refuses new messages. Those that wait for room are still stored.
    pub(super) fn close(&self) {
        self.with(|state, deferred| {
            state.closed = true;
            state.wake_drained(deferred);
        });
    }

    /// Removes the publishes that wait for room.
    pub(super) fn take_waiting(&self) -> VecDeque<PendingConfirm> {
        self.with(|state, deferred| {
            let waiting = std::mem::take(&mut state.waiting);
            state.wake_drained(deferred);
            waiting
        })
    }

    /// Receipts end at their deadlines by themselves; the expirer also frees their slots in the window.
    fn start_expirer(self: &Arc<Self>, state: &mut TopicState) {
        let watched = state.expirer.as_ref().is_some_and(|task| !task.is_finished());
        if !watched && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let task = runtime.spawn(expire_waiting(Arc::downgrade(self)));
            state.expirer = Some(task.abort_handle());
        }
    }

    /// Ends the waiting publishes that are past their deadlines. Returns the next deadline.
    fn expire(&self) -> Option<Instant> {
        self.with(|state, deferred| {
            let now = Instant::now();
            let (expired, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut state.waiting)
                .into_iter()
                .partition(|pending| pending.deadline() <= now);
            state.waiting = VecDeque::from(waiting);
            deferred.progress = !expired.is_empty();
            let expired = expired.into_iter().map(|pending| (pending, PublishOutcome::Expired));
            deferred.outcomes.extend(expired);
            state.wake_drained(deferred);
            let next = state.waiting.iter().map(PendingConfirm::deadline).min();
            if next.is_none() {
                state.expirer = None;
            }
            next
        })
    }

    // ---- groups

    /// The id of the group, which is made if it does not exist, and its signal. `true` if it was made.
    pub(super) fn group(&self, name: &str, start: StartAt) -> (u64, Arc<Notify>, bool) {
        let mut state = self.lock();
        if let Some(group) = state.named(name) {
            return (group.id, Arc::clone(&group.signal), false);
        }
        let group = state.add_group(name, start);
        (group.id, Arc::clone(&group.signal), true)
    }

    pub(super) fn delete_group(&self, name: &str) -> bool {
        self.with(|state, deferred| {
            self.count_revocation();
            state.delete_group(name, deferred)
        })
    }

    /// Delivers the next messages, at most `max`. `deliver` is called under the lock.
    pub(super) fn take(
        &self,
        group: u64,
        member: Member,
        max: usize,
        deliver: impl FnMut(Tag, &Entry),
    ) -> Taken {
        let mut state = self.lock();
        let ended = state.closed && state.waiting.is_empty();
        let end = state.log.end();
        let Some(group) = state.group_mut(group) else { return Taken::Ended };
        // Here, too, because the runtime that waits for them may be gone. They may be for other members.
        let released = group.release(end);
        let TakeResult { taken, wakes_all } = group.take(member, max, deliver);
        // One stored wake-up may stand for several ready messages.
        let one = if taken > 0 { group.signal_if_ready() } else { None };
        let all = (released || wakes_all).then(|| Arc::clone(&group.signal));
        let ended = ended && group.unsettled() == 0;
        drop(state);
        wake_one(one);
        if let Some(signal) = all {
            signal.notify_waiters();
        }
        match taken {
            0 if ended => Taken::Ended,
            0 => Taken::Empty,
            _ => Taken::Some,
        }
    }

    pub(super) fn unsettled(&self, group: &str) -> usize {
        self.lock().named(group).map_or(0, |group| group.unsettled())
    }

    /// The number of times that deliveries were revoked.
    pub(super) fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::Acquire)
    }

    fn count_revocation(&self) {
        self.revocations.fetch_add(1, Ordering::Release);
    }

    /// `false` once a delivery is settled or revoked.
    pub(super) fn is_in_flight(&self, group: u64, tag: Tag) -> bool {
        self.lock().group_mut(group).is_some_and(|group| group.is_in_flight(tag))
    }

    /// The message of a delivery in flight.
    pub(super) fn delivered(&self, group: u64, tag: Tag) -> Option<StoredMessage> {
        Some(self.lock().group_mut(group)?.delivered(tag)?.message.clone())
    }

    pub(super) fn set_retry(&self, group: u64, tag: Tag, retry: RetryState) {
        if let Some(group) = self.lock().group_mut(group) {
            group.set_retry(tag, retry);
        }
    }

    /// `false` if the delivery was revoked.
    pub(super) fn settle(&self, group: u64, tag: Tag) -> bool {
        let mut state = self.lock();
        let Some(group) = state.group_mut(group) else { return false };
        let Some(settled) = group.settle(tag) else { return false };
        let signal = settled.wakes_one.then(|| Arc::clone(&group.signal));
        state.log.settle(settled.offset);
        if state.closed || !state.waiting.is_empty() {
            let mut deferred = Deferred::default();
            state.admit_waiting(&mut deferred);
            drop(state);
            deferred.run(&self.progress);
        } else {
            drop(state);
        }
        wake_one(signal);
        true
    }

    pub(super) fn give_back(&self, group: u64, tag: Tag) {
        self.with(|state, deferred| {
            let end = state.log.end();
            if let Some(group) = state.group_mut(group) {
                group.give_back(tag, end);
                deferred.wake_one.add(&group.signal);
                deferred.wake_all.add(&group.signal);
            }
        });
    }

    /// Revokes the deliveries of `member`.
    pub(super) fn leave(&self, group: u64, member: u64) {
        self.with(|state, deferred| {
            self.count_revocation();
            if let Some(group) = state.group_mut(group) {
                group.revoke_from(member);
                deferred.wake_one.add(&group.signal);
            }
        });
    }

    /// Adds a retry copy of a message in flight with its earlier attempts, delivered after `delay`. `false` if it was
    /// revoked.
    pub(super) fn schedule(
        self: &Arc<Self>,
        group: u64,
        tag: Tag,
        retry: RetryState,
        delay: Duration,
    ) -> bool {
        let due = far_deadline(delay);
        let scheduled = self.with(|state, _| {
            let offset = state.group_mut(group)?.delay(tag, retry, due)?;
            state.log.add_unsettled(offset);
            Some(())
        });
        if scheduled.is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let topic = Arc::downgrade(self);
            runtime.spawn(async move {
                tokio::time::sleep_until(due).await;
                if let Some(topic) = topic.upgrade() {
                    topic.release(group);
                }
            });
        }
        scheduled.is_some()
    }

    fn release(&self, group: u64) {
        self.with(|state, deferred| {
            let end = state.log.end();
            if let Some(group) = state.group_mut(group)
                && group.release(end)
            {
                deferred.wake_one.add(&group.signal);
                deferred.wake_all.add(&group.signal);
            }
        });
    }

    // ---- faults

    /// Revokes all deliveries of the group; returns their number.
    pub(super) fn revoke(&self, group: &str) -> usize {
        self.with(|state, deferred| {
            self.count_revocation();
            let Some(group) = state.named(group) else { return 0 };
            let taken = group.revoke_all();
            deferred.wake_one.add(&group.signal);
            taken
        })
    }

    pub(super) fn redeliver(&self, group: &str, n: usize) -> usize {
        self.with(|state, deferred| {
            let redelivered = state.redeliver(group, n);
            if let Some(group) = state.named(group) {
                deferred.wake_one.add(&group.signal);
                deferred.wake_all.add(&group.signal);
            }
            redelivered
        })
    }
}

fn wake_one(signal: Option<Arc<Notify>>) {
    if let Some(signal) = signal {
        signal.notify_one();
    }
}

async fn expire_waiting(topic: Weak<Topic>) {
    while let Some(next) = topic.upgrade().and_then(|topic| topic.expire()) {
        tokio::time::sleep_until(next).await;
    }
}
