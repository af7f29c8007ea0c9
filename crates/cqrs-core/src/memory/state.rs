//! The state of one topic under its lock: its log, its groups, and the publishes that wait for room.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::fault_plan::{Fault, FaultPlan};
use super::group::{Group, ReadyFor};
use crate::broker::{Confirmation, PendingConfirm, PublishErrorKind};
use crate::consume::StartAt;
use crate::message::Message;

/// Bounds and rules of each topic.
#[derive(Debug, Clone, Copy)]
pub(super) struct TopicLimits {
    pub(super) capacity: usize,
    pub(super) max_message_size: usize,
    pub(super) require_subscriber: bool,
}

/// The state under the lock of a topic.
#[derive(Debug)]
pub(super) struct TopicState {
    limits: TopicLimits,
    faults: Arc<FaultPlan>,
    /// By offset.
    log: BTreeMap<u64, Kept>,
    /// Offsets in `log` that all groups have settled: they are evicted for new messages.
    evictable: BTreeSet<u64>,
    /// The offset of the next message.
    pub(super) end: u64,
    groups: Vec<Group>,
    group_ids: u64,
    /// Publishes that wait for room, in order. Empty while there is room.
    pub(super) waiting: VecDeque<PendingConfirm>,
    /// The task that ends waiting publishes at their deadlines.
    pub(super) expirer: Option<AbortHandle>,
    pub(super) closed: bool,
}

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    /// The number of groups that did not settle it; a group counts once more for each retry copy.
    unsettled_by: usize,
}

impl TopicState {
    pub(super) fn new(limits: TopicLimits, faults: Arc<FaultPlan>, closed: bool) -> Self {
        Self {
            limits,
            faults,
            log: BTreeMap::new(),
            evictable: BTreeSet::new(),
            end: 0,
            groups: Vec::new(),
            group_ids: 0,
            waiting: VecDeque::new(),
            expirer: None,
            closed,
        }
    }

    // ---- groups

    pub(super) fn group_mut(&mut self, id: u64) -> Option<&mut Group> {
        self.groups.iter_mut().find(|group| group.id == id)
    }

    pub(super) fn named(&mut self, name: &str) -> Option<&mut Group> {
        self.groups.iter_mut().find(|group| &*group.name == name)
    }

    /// Adds a group that reads the log from `start`.
    pub(super) fn add_group(&mut self, name: &str, start: StartAt) -> &Group {
        self.group_ids += 1;
        let start = match start {
            StartAt::Earliest => 0,
            StartAt::Latest => self.end,
            StartAt::Time(time) => {
                let first = self.log.iter().find(|(_, kept)| kept.message.timestamp >= time);
                first.map_or(self.end, |(offset, _)| *offset)
            }
        };
        let mut group = Group::new(self.group_ids, name.into(), start);
        for (&offset, kept) in self.log.range_mut(start..) {
            kept.unsettled_by += 1;
            self.evictable.remove(&offset);
            group.push(offset, Arc::clone(&kept.message));
        }
        self.groups.push(group);
        &self.groups[self.groups.len() - 1]
    }

    /// `false` if there is no such group.
    pub(super) fn delete_group(&mut self, name: &str, deferred: &mut Deferred) -> bool {
        let Some(at) = self.groups.iter().position(|group| &*group.name == name) else {
            return false;
        };
        let group = self.groups.remove(at);
        deferred.wake_all.push(Arc::clone(&group.signal));
        for offset in group.unsettled_offsets() {
            self.settle(offset);
        }
        self.admit_waiting(deferred);
        true
    }

    /// Redelivers the last `n` messages that the group settled.
    pub(super) fn redeliver(&mut self, group: &str, n: usize) -> usize {
        let Self { log, evictable, groups, .. } = self;
        let Some(group) = groups.iter_mut().find(|known| &*known.name == group) else { return 0 };
        let settled = group.settled(log.keys().copied());
        let redelivered = &settled[settled.len().saturating_sub(n)..];
        for offset in redelivered {
            if let Some(kept) = log.get_mut(offset) {
                kept.unsettled_by += 1;
                evictable.remove(offset);
                group.push_redelivered(*offset, Arc::clone(&kept.message));
            }
        }
        redelivered.len()
    }

    // ---- messages

    pub(super) fn messages(&self) -> impl Iterator<Item = Arc<Message>> {
        self.log.values().map(|kept| Arc::clone(&kept.message))
    }

    pub(super) fn has_room(&self) -> bool {
        self.log.len() < self.limits.capacity || !self.evictable.is_empty()
    }

    /// `true` if a message has no receiver, as on RabbitMQ.
    pub(super) fn is_unroutable(&self) -> bool {
        self.limits.require_subscriber && self.groups.is_empty()
    }

    /// Ends the publish of an unroutable message.
    pub(super) fn return_unrouted(pending: PendingConfirm, deferred: &mut Deferred) {
        let outcome = match (pending.start_sending(), pending.message().mandatory) {
            (false, _) => PublishOutcome::Expired,
            (true, true) => PublishOutcome::Unroutable,
            (true, false) => PublishOutcome::Forgotten,
        };
        deferred.outcomes.push((pending, outcome));
    }

    /// Stores a message, for which there is room.
    pub(super) fn store(&mut self, pending: PendingConfirm, deferred: &mut Deferred) {
        if !pending.start_sending() {
            deferred.outcomes.push((pending, PublishOutcome::Expired));
            return;
        }
        if self.faults.occurs(Fault::RefusedMessage) {
            deferred.outcomes.push((pending, PublishOutcome::Refused));
            return;
        }
        let message = Arc::new(pending.message().clone());
        let offset = self.append(Arc::clone(&message), deferred);
        if self.has_room() && self.faults.occurs(Fault::Duplicate) {
            self.append(message, deferred);
        }
        let outcome = match () {
            () if self.faults.occurs(Fault::LostConfirm) => PublishOutcome::Lost,
            () if self.faults.occurs(Fault::WithheldConfirm) => PublishOutcome::Withheld,
            () => PublishOutcome::Stored { offset },
        };
        deferred.outcomes.push((pending, outcome));
    }

    fn append(&mut self, message: Arc<Message>, deferred: &mut Deferred) -> u64 {
        if self.log.len() >= self.limits.capacity
            && let Some(oldest) = self.evictable.pop_first()
        {
            self.log.remove(&oldest);
        }
        let offset = self.end;
        self.end += 1;
        for group in &mut self.groups {
            match group.push(offset, Arc::clone(&message)) {
                ReadyFor::None => {}
                ReadyFor::Any => deferred.wake_one.push(Arc::clone(&group.signal)),
                // The signal cannot wake one certain member.
                ReadyFor::Holder => deferred.wake_all.push(Arc::clone(&group.signal)),
            }
        }
        let unsettled_by = self.groups.len();
        if unsettled_by == 0 {
            self.evictable.insert(offset);
        }
        self.log.insert(offset, Kept { message, unsettled_by });
        offset
    }

    /// A retry copy of the unsettled message at `offset` was added.
    pub(super) fn add_unsettled(&mut self, offset: u64) {
        if let Some(kept) = self.log.get_mut(&offset) {
            kept.unsettled_by += 1;
        }
    }

    /// A group settled the message at `offset`.
    pub(super) fn settle(&mut self, offset: u64) {
        if let Some(kept) = self.log.get_mut(&offset) {
            kept.unsettled_by -= 1;
            if kept.unsettled_by == 0 {
                self.evictable.insert(offset);
            }
        }
    }

    /// Stores waiting messages while there is room.
    pub(super) fn admit_waiting(&mut self, deferred: &mut Deferred) {
        while self.has_room()
            && let Some(pending) = self.waiting.pop_front()
        {
            match self.is_unroutable() {
                true => Self::return_unrouted(pending, deferred),
                false => self.store(pending, deferred),
            }
            deferred.progress = true;
        }
        self.wake_drained(deferred);
    }

    pub(super) fn wake_drained(&self, deferred: &mut Deferred) {
        if self.closed && self.waiting.is_empty() {
            let drained = self.groups.iter().filter(|group| group.unsettled() == 0);
            deferred.wake_all.extend(drained.map(|group| Arc::clone(&group.signal)));
        }
    }
}

/// The work after the lock is released: wakers and confirms run other code.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// Signals of groups in which one waiting member must be woken.
    pub(super) wake_one: Vec<Arc<Notify>>,
    /// Signals of groups in which all waiting members must be woken.
    pub(super) wake_all: Vec<Arc<Notify>>,
    pub(super) outcomes: Vec<(PendingConfirm, PublishOutcome)>,
    pub(super) progress: bool,
}

#[derive(Debug)]
pub(super) enum PublishOutcome {
    Stored { offset: u64 },
    Forgotten,
    Unroutable,
    Expired,
    Refused,
    Lost,
    Withheld,
}

impl Deferred {
    pub(super) fn run(self, progress: &Notify) {
        for (pending, outcome) in self.outcomes {
            match outcome {
                PublishOutcome::Stored { offset } => {
                    let offset = i64::try_from(offset).unwrap_or(i64::MAX);
                    pending.confirm(Confirmation::at(0, offset));
                }
                PublishOutcome::Forgotten => pending.confirm(Confirmation::default()),
                PublishOutcome::Unroutable => {
                    let detail = "its topic has no group: start its consumer first, create the group, or \
                                  set `mandatory = false` for this event";
                    pending.fail(PublishErrorKind::Unroutable, detail, None);
                }
                PublishOutcome::Expired => pending.expire(None),
                PublishOutcome::Refused => {
                    let detail = "an injected fault refuses it";
                    pending.fail(PublishErrorKind::Refused, detail, None);
                }
                PublishOutcome::Lost => {
                    let detail = "an injected fault lost its confirm";
                    pending.fail(PublishErrorKind::Unknown, detail, None);
                }
                PublishOutcome::Withheld => withhold(pending),
            }
        }
        self.wake_one.iter().for_each(|signal| signal.notify_one());
        self.wake_all.iter().for_each(|signal| signal.notify_waiters());
        if self.progress {
            progress.notify_waiters();
        }
    }
}

/// Ends the publish at its deadline; at once outside of a runtime.
fn withhold(pending: PendingConfirm) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move {
            tokio::time::sleep_until(pending.deadline()).await;
            pending.expire(None);
        })),
        Err(_no_runtime) => pending.expire(None),
    }
}
