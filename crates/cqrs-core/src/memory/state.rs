use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::fault_plan::FaultPlan;
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

/// What the lock of a topic guards.
#[derive(Debug)]
pub(super) struct State {
    limits: TopicLimits,
    faults: Arc<FaultPlan>,
    /// By offset.
    log: BTreeMap<u64, Kept>,
    /// Offsets in `log` that no group owes a settlement, so that their places can be taken.
    free: BTreeSet<u64>,
    /// The offset of the next message.
    pub(super) end: u64,
    groups: Vec<Group>,
    group_ids: u64,
    /// Wait for room, in order. Not empty only while there is none.
    pub(super) parked: VecDeque<PendingConfirm>,
    /// Ends what is parked past its deadline.
    pub(super) expirer: Option<AbortHandle>,
    pub(super) closed: bool,
}

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    /// Groups that did not settle it; a group counts once more for each delayed copy.
    owed: usize,
}

impl State {
    pub(super) fn new(limits: TopicLimits, faults: Arc<FaultPlan>, closed: bool) -> Self {
        Self {
            limits,
            faults,
            log: BTreeMap::new(),
            free: BTreeSet::new(),
            end: 0,
            groups: Vec::new(),
            group_ids: 0,
            parked: VecDeque::new(),
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
            kept.owed += 1;
            self.free.remove(&offset);
            group.push(offset, Arc::clone(&kept.message));
        }
        self.groups.push(group);
        &self.groups[self.groups.len() - 1]
    }

    /// `false` when there is none.
    pub(super) fn delete_group(&mut self, name: &str, afterwards: &mut Afterwards) -> bool {
        let Some(at) = self.groups.iter().position(|group| &*group.name == name) else {
            return false;
        };
        let group = self.groups.remove(at);
        afterwards.everybody.push(Arc::clone(&group.signal));
        for offset in group.unsettled_offsets() {
            self.settle(offset);
        }
        self.admit_parked(afterwards);
        true
    }

    /// Hands the last `n` messages out again that the group settled.
    pub(super) fn redeliver(&mut self, group: &str, n: usize) -> usize {
        let Self { log, free, groups, .. } = self;
        let Some(group) = groups.iter_mut().find(|known| &*known.name == group) else { return 0 };
        let settled = group.settled(log.keys().copied());
        let again = &settled[settled.len().saturating_sub(n)..];
        for offset in again {
            if let Some(kept) = log.get_mut(offset) {
                kept.owed += 1;
                free.remove(offset);
                group.push_again(*offset, Arc::clone(&kept.message));
            }
        }
        again.len()
    }

    // ---- messages

    pub(super) fn messages(&self) -> impl Iterator<Item = Arc<Message>> {
        self.log.values().map(|kept| Arc::clone(&kept.message))
    }

    pub(super) fn has_room(&self) -> bool {
        self.log.len() < self.limits.capacity || !self.free.is_empty()
    }

    /// Whether a message would reach nobody, as on RabbitMQ.
    pub(super) fn reaches_nobody(&self) -> bool {
        self.limits.require_subscriber && self.groups.is_empty()
    }

    /// Ends a message that reaches nobody.
    pub(super) fn return_unrouted(pending: PendingConfirm, afterwards: &mut Afterwards) {
        let verdict = match (pending.start_sending(), pending.message().mandatory) {
            (false, _) => Verdict::Expired,
            (true, true) => Verdict::Unroutable,
            (true, false) => Verdict::Forgotten,
        };
        afterwards.verdicts.push((pending, verdict));
    }

    /// Takes a message that there is room for.
    pub(super) fn store(&mut self, pending: PendingConfirm, afterwards: &mut Afterwards) {
        if !pending.start_sending() {
            afterwards.verdicts.push((pending, Verdict::Expired));
            return;
        }
        if self.faults.refused_messages.strikes() {
            afterwards.verdicts.push((pending, Verdict::Refused));
            return;
        }
        let message = Arc::new(pending.message().clone());
        let offset = self.append(Arc::clone(&message), afterwards);
        if self.has_room() && self.faults.duplicates.strikes() {
            self.append(message, afterwards);
        }
        let verdict = match () {
            () if self.faults.lost_confirms.strikes() => Verdict::Lost,
            () if self.faults.withheld_confirms.strikes() => Verdict::Withheld,
            () => Verdict::Stored { offset },
        };
        afterwards.verdicts.push((pending, verdict));
    }

    fn append(&mut self, message: Arc<Message>, afterwards: &mut Afterwards) -> u64 {
        if self.log.len() >= self.limits.capacity
            && let Some(oldest) = self.free.pop_first()
        {
            self.log.remove(&oldest);
        }
        let offset = self.end;
        self.end += 1;
        for group in &mut self.groups {
            match group.push(offset, Arc::clone(&message)) {
                ReadyFor::Nobody => {}
                ReadyFor::Anybody => afterwards.ready.push(Arc::clone(&group.signal)),
                // Which of those that wait that is, the signal does not know.
                ReadyFor::Holder => afterwards.everybody.push(Arc::clone(&group.signal)),
            }
        }
        let owed = self.groups.len();
        if owed == 0 {
            self.free.insert(offset);
        }
        self.log.insert(offset, Kept { message, owed });
        offset
    }

    /// One more settlement is owed of the message at `offset`, which is not settled.
    pub(super) fn owe(&mut self, offset: u64) {
        if let Some(kept) = self.log.get_mut(&offset) {
            kept.owed += 1;
        }
    }

    /// One group is done with the message at `offset`.
    pub(super) fn settle(&mut self, offset: u64) {
        if let Some(kept) = self.log.get_mut(&offset) {
            kept.owed -= 1;
            if kept.owed == 0 {
                self.free.insert(offset);
            }
        }
    }

    /// Takes what waits for room, as far as there is some.
    pub(super) fn admit_parked(&mut self, afterwards: &mut Afterwards) {
        while self.has_room()
            && let Some(pending) = self.parked.pop_front()
        {
            match self.reaches_nobody() {
                true => Self::return_unrouted(pending, afterwards),
                false => self.store(pending, afterwards),
            }
            afterwards.progress = true;
        }
        self.tell_drained(afterwards);
    }

    pub(super) fn tell_drained(&self, afterwards: &mut Afterwards) {
        if self.closed && self.parked.is_empty() {
            let drained = self.groups.iter().filter(|group| group.unsettled() == 0);
            afterwards.everybody.extend(drained.map(|group| Arc::clone(&group.signal)));
        }
    }
}

/// What is to be done once the lock is released: wakers run foreign code.
#[derive(Debug, Default)]
pub(super) struct Afterwards {
    /// One of those that wait is to look again.
    pub(super) ready: Vec<Arc<Notify>>,
    /// All of them are.
    pub(super) everybody: Vec<Arc<Notify>>,
    pub(super) verdicts: Vec<(PendingConfirm, Verdict)>,
    pub(super) progress: bool,
}

#[derive(Debug)]
pub(super) enum Verdict {
    Stored { offset: u64 },
    Forgotten,
    Unroutable,
    Expired,
    Refused,
    Lost,
    Withheld,
}

impl Afterwards {
    pub(super) fn run(self, progress: &Notify) {
        for (pending, verdict) in self.verdicts {
            match verdict {
                Verdict::Stored { offset } => {
                    let offset = i64::try_from(offset).unwrap_or(i64::MAX);
                    pending.confirm(Confirmation::at(0, offset));
                }
                Verdict::Forgotten => pending.confirm(Confirmation::default()),
                Verdict::Unroutable => {
                    let detail = "its topic has no group; subscribe first";
                    pending.fail(PublishErrorKind::Unroutable, detail, None);
                }
                Verdict::Expired => pending.expire(None),
                Verdict::Refused => {
                    let detail = "an injected fault refuses it";
                    pending.fail(PublishErrorKind::Refused, detail, None);
                }
                Verdict::Lost => {
                    let detail = "an injected fault lost its confirm";
                    pending.fail(PublishErrorKind::Unknown, detail, None);
                }
                Verdict::Withheld => withhold(pending),
            }
        }
        self.ready.iter().for_each(|signal| signal.notify_one());
        self.everybody.iter().for_each(|signal| signal.notify_waiters());
        if self.progress {
            progress.notify_waiters();
        }
    }
}

/// Ends the publish at its deadline; at once when nobody can wait for that.
fn withhold(pending: PendingConfirm) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move {
            tokio::time::sleep_until(pending.deadline()).await;
            pending.expire(None);
        })),
        Err(_no_runtime) => pending.expire(None),
    }
}
