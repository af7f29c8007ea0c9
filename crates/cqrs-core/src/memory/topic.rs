use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::builder::Limits;
use super::group::{Entry, Group, StartFrom};
use crate::Message;
use crate::broker::{Confirmation, PendingConfirm, PublishError, PublishErrorKind};

/// A bounded log and the groups that read it.
#[derive(Debug)]
pub(super) struct Topic {
    limits: Limits,
    /// Told whenever a message stopped waiting for room; shared by all topics of a broker.
    progress: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By offset.
    log: BTreeMap<u64, Kept>,
    /// Offsets in `log` that no group owes a settlement, so that their places can be taken.
    free: BTreeSet<u64>,
    end: u64,
    groups: Vec<Group>,
    group_ids: u64,
    /// Wait for room, in order. Not empty only while there is none.
    parked: VecDeque<PendingConfirm>,
    /// Ends what is parked past its deadline.
    expirer: Option<AbortHandle>,
    closed: bool,
}

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    /// Groups that did not settle it.
    owed: usize,
}

/// What a subscriber finds.
#[derive(Debug)]
pub(super) enum Taken {
    Entry(Entry),
    NothingNow,
    NothingEver,
}

/// What is to be done once the lock is released: wakers run foreign code.
#[derive(Debug, Default)]
struct Afterwards {
    ready: Vec<Arc<Notify>>,
    ended: Vec<Arc<Notify>>,
    verdicts: Vec<(PendingConfirm, Verdict)>,
    progress: bool,
}

#[derive(Debug)]
enum Verdict {
    Stored { offset: u64 },
    Forgotten,
    Unroutable,
    Expired,
}

impl Topic {
    pub(super) fn new(limits: Limits, progress: Arc<Notify>, closed: bool) -> Self {
        Self { limits, progress, state: Mutex::new(State { closed, ..State::default() }) }
    }

    /// No code of others runs under the lock, so a poisoned state is a consistent one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, change: impl FnOnce(&mut State, &mut Afterwards) -> R) -> R {
        let mut afterwards = Afterwards::default();
        let result = change(&mut self.lock(), &mut afterwards);
        afterwards.run(&self.progress);
        result
    }

    /// Stores the message, or lets it wait for room when it `may_wait`.
    pub(super) fn publish(
        self: &Arc<Self>,
        pending: PendingConfirm,
        may_wait: bool,
    ) -> Result<(), PublishError> {
        let limits = self.limits;
        let refused = self.with(|state, afterwards| {
            if state.closed {
                return Some((pending, PublishErrorKind::Closed, "shutdown was called on it"));
            }
            if limits.require_subscriber && state.groups.is_empty() {
                let verdict = match pending.message().mandatory {
                    true => Verdict::Unroutable,
                    false => Verdict::Forgotten,
                };
                afterwards.verdicts.push((pending, verdict));
            } else if state.has_room(&limits) {
                state.store(pending, &limits, afterwards);
            } else if may_wait {
                state.parked.push_back(pending);
                state.watch_deadlines(self);
            } else {
                let detail = "its topic is full of messages that a group has not settled";
                return Some((pending, PublishErrorKind::Full, detail));
            }
            None
        });
        match refused {
            Some((pending, kind, detail)) => Err(pending.reject(kind, detail)),
            None => Ok(()),
        }
    }

    /// The id of the group, which is made when there is none, and what tells of its messages. `true`
    /// when it was made.
    pub(super) fn group(&self, name: &str, start: StartFrom) -> (u64, Arc<Notify>, bool) {
        let mut state = self.lock();
        if let Some(group) = state.groups.iter().find(|group| &*group.name == name) {
            return (group.id, Arc::clone(&group.signal), false);
        }
        state.group_ids += 1;
        let mut group = Group::new(state.group_ids, name.into());
        if start == StartFrom::Oldest {
            state.free.clear();
            for (&offset, kept) in &mut state.log {
                kept.owed += 1;
                group.push(offset, Arc::clone(&kept.message));
            }
        }
        let made = (group.id, Arc::clone(&group.signal), true);
        state.groups.push(group);
        made
    }

    pub(super) fn delete_group(&self, name: &str) -> bool {
        self.with(|state, afterwards| {
            let Some(at) = state.groups.iter().position(|group| &*group.name == name) else {
                return false;
            };
            let group = state.groups.remove(at);
            afterwards.ended.push(Arc::clone(&group.signal));
            for offset in group.into_waiting() {
                state.settle(offset);
            }
            state.admit_parked(&self.limits, afterwards);
            true
        })
    }

    pub(super) fn take(&self, group: u64) -> Taken {
        self.with(|state, afterwards| {
            let ended = state.closed && state.parked.is_empty();
            let Some(group) = state.groups.iter_mut().find(|known| known.id == group) else {
                return Taken::NothingEver;
            };
            match group.take() {
                Some(entry) => {
                    // Several messages may have become ready for one stored wake-up.
                    if group.has_ready() {
                        afterwards.ready.push(Arc::clone(&group.signal));
                    }
                    Taken::Entry(entry)
                }
                None if ended && group.unsettled() == 0 => Taken::NothingEver,
                None => Taken::NothingNow,
            }
        })
    }

    pub(super) fn settle(&self, group: u64, entry: &Entry) {
        self.with(|state, afterwards| {
            if let Some(group) = state.group_mut(group)
                && group.settle(entry)
            {
                afterwards.ready.push(Arc::clone(&group.signal));
            }
            state.settle(entry.offset);
            state.admit_parked(&self.limits, afterwards);
        });
    }

    pub(super) fn give_back(&self, group: u64, entry: Entry) {
        self.with(|state, afterwards| {
            let end = state.end;
            match state.group_mut(group) {
                Some(group) => {
                    group.give_back(entry, end);
                    afterwards.ready.push(Arc::clone(&group.signal));
                }
                // The group was deleted while the delivery was out.
                None => {
                    state.settle(entry.offset);
                    state.admit_parked(&self.limits, afterwards);
                }
            }
        });
    }

    pub(super) fn messages(&self) -> Vec<Arc<Message>> {
        self.lock().log.values().map(|kept| Arc::clone(&kept.message)).collect()
    }

    pub(super) fn has_parked(&self) -> bool {
        !self.lock().parked.is_empty()
    }

    /// Refuses new messages. Those that wait for room still get it.
    pub(super) fn close(&self) {
        self.with(|state, afterwards| {
            state.closed = true;
            state.tell_drained(afterwards);
        });
    }

    /// Takes out what still waits for room.
    pub(super) fn take_parked(&self) -> VecDeque<PendingConfirm> {
        self.with(|state, afterwards| {
            let parked = std::mem::take(&mut state.parked);
            state.tell_drained(afterwards);
            parked
        })
    }

    /// Ends what is parked past its deadline; the deadline that comes next.
    fn expire(&self) -> Option<Instant> {
        self.with(|state, afterwards| {
            let now = Instant::now();
            let (expired, parked): (Vec<_>, Vec<_>) = std::mem::take(&mut state.parked)
                .into_iter()
                .partition(|pending| pending.deadline() <= now);
            state.parked = VecDeque::from(parked);
            afterwards.progress = !expired.is_empty();
            let expired = expired.into_iter().map(|pending| (pending, Verdict::Expired));
            afterwards.verdicts.extend(expired);
            state.tell_drained(afterwards);
            let next = state.parked.iter().map(PendingConfirm::deadline).min();
            if next.is_none() {
                state.expirer = None;
            }
            next
        })
    }
}

impl State {
    fn group_mut(&mut self, id: u64) -> Option<&mut Group> {
        self.groups.iter_mut().find(|group| group.id == id)
    }

    fn has_room(&self, limits: &Limits) -> bool {
        self.log.len() < limits.capacity || !self.free.is_empty()
    }

    fn store(&mut self, pending: PendingConfirm, limits: &Limits, afterwards: &mut Afterwards) {
        if !pending.start_sending() {
            afterwards.verdicts.push((pending, Verdict::Expired));
            return;
        }
        if self.log.len() >= limits.capacity
            && let Some(oldest) = self.free.pop_first()
        {
            self.log.remove(&oldest);
        }
        let offset = self.end;
        self.end += 1;
        let message = Arc::new(pending.message().clone());
        for group in &mut self.groups {
            if group.push(offset, Arc::clone(&message)) {
                afterwards.ready.push(Arc::clone(&group.signal));
            }
        }
        let owed = self.groups.len();
        if owed == 0 {
            self.free.insert(offset);
        }
        self.log.insert(offset, Kept { message, owed });
        afterwards.verdicts.push((pending, Verdict::Stored { offset }));
    }

    /// One group is done with the message at `offset`.
    fn settle(&mut self, offset: u64) {
        if let Some(kept) = self.log.get_mut(&offset) {
            kept.owed -= 1;
            if kept.owed == 0 {
                self.free.insert(offset);
            }
        }
    }

    fn admit_parked(&mut self, limits: &Limits, afterwards: &mut Afterwards) {
        while self.has_room(limits)
            && let Some(pending) = self.parked.pop_front()
        {
            self.store(pending, limits, afterwards);
            afterwards.progress = true;
        }
        self.tell_drained(afterwards);
    }

    fn tell_drained(&self, afterwards: &mut Afterwards) {
        if self.closed && self.parked.is_empty() {
            let drained = self.groups.iter().filter(|group| group.unsettled() == 0);
            afterwards.ended.extend(drained.map(|group| Arc::clone(&group.signal)));
        }
    }

    /// Receipts end at their deadlines by themselves; this frees the places in the window as well.
    fn watch_deadlines(&mut self, topic: &Arc<Topic>) {
        let watched = self.expirer.as_ref().is_some_and(|task| !task.is_finished());
        if !watched && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let task = runtime.spawn(expire_parked(Arc::downgrade(topic)));
            self.expirer = Some(task.abort_handle());
        }
    }
}

async fn expire_parked(topic: Weak<Topic>) {
    while let Some(next) = topic.upgrade().and_then(|topic| topic.expire()) {
        tokio::time::sleep_until(next).await;
    }
}

impl Afterwards {
    fn run(self, progress: &Notify) {
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
            }
        }
        self.ready.iter().for_each(|signal| signal.notify_one());
        self.ended.iter().for_each(|signal| signal.notify_waiters());
        if self.progress {
            progress.notify_waiters();
        }
    }
}
