//! The state of one topic under its lock: its log, its groups, and the publishes that wait for room.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::fault_plan::{Fault, FaultPlan};
use super::group::{Group, ReadyFor};
use super::log::Log;
use super::stored::StoredMessage;
use crate::broker::{Confirmation, PendingConfirm, PublishErrorKind, SharedMessage};
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
    pub(super) log: Log,
    groups: Vec<Group>,
    group_ids: u64,
    /// Publishes that wait for room, in order. Empty while there is room.
    pub(super) waiting: VecDeque<PendingConfirm>,
    /// The task that ends waiting publishes at their deadlines.
    pub(super) expirer: Option<AbortHandle>,
    pub(super) closed: bool,
}

impl TopicState {
    pub(super) fn new(limits: TopicLimits, faults: Arc<FaultPlan>, closed: bool) -> Self {
        Self {
            limits,
            faults,
            log: Log::new(limits.capacity),
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
            StartAt::Latest => self.log.end(),
            StartAt::Time(time) => {
                let is_late = |kept: &StoredMessage| kept.message().timestamp >= time;
                let first = self.log.since(0).find(|(_, kept)| is_late(kept));
                first.map_or(self.log.end(), |(offset, _)| offset)
            }
        };
        let mut group = Group::new(self.group_ids, name.into(), start);
        let kept = self.log.since(start).map(|(offset, message)| {
            group.push(offset, message.clone());
            offset
        });
        for offset in kept.collect::<Vec<_>>() {
            self.log.add_unsettled(offset);
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
        deferred.wake_all.add(&group.signal);
        for offset in group.unsettled_offsets() {
            self.log.settle(offset);
        }
        self.admit_waiting(deferred);
        true
    }

    /// Redelivers the last `n` messages that the group settled.
    pub(super) fn redeliver(&mut self, group: &str, n: usize) -> usize {
        let Self { log, groups, .. } = self;
        let Some(group) = groups.iter_mut().find(|known| &*known.name == group) else { return 0 };
        let settled = group.settled(log.since(0).map(|(offset, _)| offset));
        let redelivered = &settled[settled.len().saturating_sub(n)..];
        for &offset in redelivered {
            if let Some(message) = log.get(offset).cloned() {
                log.add_unsettled(offset);
                group.push_redelivered(offset, message);
            }
        }
        redelivered.len()
    }

    // ---- messages

    pub(super) fn messages(&self) -> impl Iterator<Item = Message> {
        self.log.since(0).map(|(_, stored)| stored.message().clone())
    }

    /// `true` if a message has no receiver, as on RabbitMQ.
    pub(super) fn is_unroutable(&self) -> bool {
        self.limits.require_subscriber && self.groups.is_empty()
    }

    /// The end of the publish of an unroutable message.
    fn return_unrouted(pending: &PendingConfirm) -> PublishOutcome {
        match (pending.start_sending(), pending.message().mandatory) {
            (false, _) => PublishOutcome::Expired,
            (true, true) => PublishOutcome::Unroutable,
            (true, false) => PublishOutcome::Forgotten,
        }
    }

    /// Stores a message, for which there is room, unless it is unroutable.
    pub(super) fn store(
        &mut self,
        pending: &PendingConfirm,
        deferred: &mut Deferred,
    ) -> PublishOutcome {
        if self.is_unroutable() {
            return Self::return_unrouted(pending);
        }
        if !pending.start_sending() {
            return PublishOutcome::Expired;
        }
        if self.faults.occurs(Fault::RefusedMessage) {
            return PublishOutcome::Refused;
        }
        let offset = self.append(pending.shared_message(), deferred);
        if self.log.has_room() && self.faults.occurs(Fault::Duplicate) {
            self.append(pending.shared_message(), deferred);
        }
        match () {
            () if self.faults.occurs(Fault::LostConfirm) => PublishOutcome::Lost,
            () if self.faults.occurs(Fault::WithheldConfirm) => PublishOutcome::Withheld,
            () => PublishOutcome::Stored { offset },
        }
    }

    fn append(&mut self, message: SharedMessage, deferred: &mut Deferred) -> u64 {
        let message = StoredMessage::new(message, self.log.end());
        let offset = self.log.append(message.clone(), self.groups.len());
        for group in &mut self.groups {
            match group.push(offset, message.clone()) {
                ReadyFor::None => {}
                ReadyFor::Any => deferred.wake_one.add(&group.signal),
                // The signal cannot wake one certain member.
                ReadyFor::Holder => deferred.wake_all.add(&group.signal),
            }
        }
        offset
    }

    /// Stores waiting messages while there is room.
    pub(super) fn admit_waiting(&mut self, deferred: &mut Deferred) {
        while self.log.has_room()
            && let Some(pending) = self.waiting.pop_front()
        {
            let outcome = self.store(&pending, deferred);
            deferred.outcomes.push((pending, outcome));
            deferred.progress = true;
        }
        self.wake_drained(deferred);
    }

    pub(super) fn wake_drained(&self, deferred: &mut Deferred) {
        if self.closed && self.waiting.is_empty() {
            let drained = self.groups.iter().filter(|group| group.unsettled() == 0);
            drained.for_each(|group| deferred.wake_all.add(&group.signal));
        }
    }
}

/// The work after the lock is released: wakers and confirms run other code.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// Signals of groups in which one waiting member must be woken.
    pub(super) wake_one: Signals,
    /// Signals of groups in which all waiting members must be woken.
    pub(super) wake_all: Signals,
    pub(super) outcomes: Vec<(PendingConfirm, PublishOutcome)>,
    pub(super) progress: bool,
}

/// Signals of groups. The first one, which is nearly always the only one, takes no allocation.
#[derive(Debug, Default)]
pub(super) struct Signals {
    first: Option<Arc<Notify>>,
    others: Vec<Arc<Notify>>,
}

impl Signals {
    pub(super) fn add(&mut self, signal: &Arc<Notify>) {
        let signal = Arc::clone(signal);
        match &self.first {
            None => self.first = Some(signal),
            Some(_) => self.others.push(signal),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Notify>> {
        self.first.iter().chain(&self.others)
    }
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
    #[inline]
    pub(super) fn run(self, progress: &Notify) {
        for (pending, outcome) in self.outcomes {
            outcome.tell(pending);
        }
        self.wake_one.iter().for_each(|signal| signal.notify_one());
        self.wake_all.iter().for_each(|signal| signal.notify_waiters());
        if self.progress {
            progress.notify_waiters();
        }
    }
}

impl PublishOutcome {
    /// Ends the publish. Not to be called under the lock.
    pub(super) fn tell(self, pending: PendingConfirm) {
        match self {
            Self::Stored { offset } => {
                let offset = i64::try_from(offset).unwrap_or(i64::MAX);
                pending.confirm(Confirmation::at(0, offset));
            }
            Self::Forgotten => pending.confirm(Confirmation::default()),
            Self::Unroutable => {
                let detail = "its topic has no group: start its consumer first, create the group, or set \
                              `mandatory = false` for this event";
                pending.fail(PublishErrorKind::Unroutable, detail, None);
            }
            Self::Expired => pending.expire(None),
            Self::Refused => {
                let detail = "an injected fault refuses it";
                pending.fail(PublishErrorKind::Refused, detail, None);
            }
            Self::Lost => {
                let detail = "an injected fault lost its confirm";
                pending.fail(PublishErrorKind::Unknown, detail, None);
            }
            Self::Withheld => withhold(pending),
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
