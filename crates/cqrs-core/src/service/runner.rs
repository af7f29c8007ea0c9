use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::job::Job;
use super::lanes::{LaneId, Lanes, Placed};
use super::policy::Policies;
use super::routes::Routes;
use super::state::Watched;
use super::subscription::{DecoderFn, UndecodableFn};
use super::target::Kind;
use crate::consume::{DeadLetterTo, Retry};
use crate::middleware::DynMiddleware;

/// One running subscription: what its fetching task and its workers share.
///
/// # Invariants
/// 1. Every [`Job`] is owned by exactly one of: `lanes`, a worker, a manual [`Delivery`](super::Delivery).
///    Whoever drops it gives the message back; only [`Settle::ack`](crate::consume::Settle::ack) settles.
/// 2. A worker acks only after its handler returned `Ok`, a copy or dead letter was confirmed, or a
///    policy said so. A panic is caught inside the attempt; a worker that is aborted drops its job.
/// 3. At most `concurrency` workers exist; each has at most one job, a batch worker one batch.
/// 4. After `stop` no job is taken any more; after `abort` the workers are gone.
/// 5. The lock is never held across an `.await`, nor while code of others runs (a dropped job runs some),
///    but for [`Settle::is_revoked`](crate::consume::Settle::is_revoked), which must be cheap.
pub(super) struct Runner {
    pub(super) spec: Spec,
    pub(super) watched: Arc<Watched>,
    lanes: Mutex<Shared>,
    hashes: RandomState,
    /// One permit for each waiting worker that was chosen to look again.
    work: Semaphore,
    /// A job is held whose time comes earlier than that of the others.
    pub(super) timer: Notify,
    /// Takes nothing new any more.
    pub(super) stop: CancellationToken,
    /// Why the subscription cannot go on, when a worker found that out.
    fatal: Mutex<Option<String>>,
}

#[derive(Default)]
struct Shared {
    lanes: Lanes<Job>,
    /// Workers that wait and were not chosen to look again. A worker adds itself while it sees that
    /// there is nothing; whoever chooses it takes it away: so no wake-up is lost, and none counts twice.
    idle: usize,
    workers: usize,
    /// Jobs that workers have taken and not ended.
    taken: usize,
}

/// What a subscription was configured with, as the workers need it.
pub(super) struct Spec {
    pub(super) group: Arc<str>,
    pub(super) routes: Routes,
    pub(super) policies: Policies,
    pub(super) undecodable: Option<UndecodableFn>,
    pub(super) decoders: Vec<DecoderFn>,
    pub(super) middlewares: Vec<Arc<dyn DynMiddleware>>,
    pub(super) handler: Kind,
    pub(super) limits: Limits,
    pub(super) retry: Retry,
    pub(super) dead_letter: DeadLetterTo,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) concurrency: usize,
    pub(super) max_body_size: usize,
    pub(super) max_crashes: u32,
    pub(super) timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: 1, max_body_size: usize::MAX, max_crashes: 3, timeout: None }
    }
}

/// How the handling of a job ended.
pub(super) enum End {
    /// Settled or given back.
    Done,
    /// To be taken again, not before then.
    Hold(Job, Instant),
    /// The subscription cannot go on.
    Fatal(String),
}

impl Runner {
    pub(super) fn new(spec: Spec, watched: Arc<Watched>, stop: CancellationToken) -> Self {
        Self {
            spec,
            watched,
            lanes: Mutex::default(),
            hashes: RandomState::new(),
            work: Semaphore::new(0),
            timer: Notify::new(),
            stop,
            fatal: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what came, in order. Returns how many workers are to be started for it.
    pub(super) fn push(&self, jobs: impl Iterator<Item = Job>) -> usize {
        let mut shared = self.lock();
        for job in jobs {
            let lane = self.lane(&job);
            shared.lanes.push(lane, job);
        }
        self.employ(&mut shared)
    }

    /// Sees to it that somebody takes what is ready: how many workers are to be started. One that waits
    /// is woken; it wakes the next when there is more than it takes. So a burst of short jobs does not
    /// wake all of them for what one can do.
    ///
    /// Workers that were woken or started for earlier jobs, and did not take them yet, are not there for
    /// new ones: all that is ready counts, and all who have nothing.
    fn employ(&self, shared: &mut Shared) -> usize {
        let ready = shared.lanes.ready();
        let room = self.spec.limits.concurrency.saturating_sub(shared.workers);
        let free = shared.workers.saturating_sub(shared.taken);
        let missing = room.min(ready.saturating_sub(free));
        shared.workers += missing;
        if ready > 0 {
            self.wake_one(shared);
        }
        missing
    }

    fn wake_one(&self, shared: &mut Shared) {
        if shared.idle > 0 {
            shared.idle -= 1;
            self.work.add_permits(1);
        }
    }

    /// Strict order is one lane for all. A batch takes what it gets in order, and runs alone.
    fn lane(&self, job: &Job) -> Option<LaneId> {
        if matches!(self.spec.handler, Kind::Batch(..)) {
            return None;
        }
        if self.spec.limits.concurrency == 1 {
            return Some(0);
        }
        let key = job.message.key.as_ref()?;
        Some(self.hashes.hash_one((&*job.message.topic, key)))
    }

    /// The next job; `None` once the subscription stops.
    pub(super) async fn take(&self) -> Option<Placed<Job>> {
        loop {
            if let Some(placed) = self.look()? {
                return Some(placed);
            }
            tokio::select! {
                permit = self.work.acquire() => permit.ok()?.forget(),
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// The next job if it comes before `until`. Only for a worker that is the only one.
    pub(super) async fn take_before(&self, until: Instant) -> Option<Placed<Job>> {
        let taken = tokio::time::timeout_at(until, self.take()).await;
        // It may have been chosen or not; as the only one it looks again anyway.
        self.lock().idle = 0;
        taken.ok().flatten()
    }

    /// A job, or the worker counted as waiting; `None` when the subscription stops.
    fn look(&self) -> Option<Option<Placed<Job>>> {
        if self.stop.is_cancelled() {
            return None;
        }
        let mut shared = self.lock();
        let placed = match self.watched.is_paused() {
            true => None,
            false => shared.lanes.take(),
        };
        match placed {
            None => shared.idle += 1,
            Some(_) => {
                shared.taken += 1;
                if shared.lanes.ready() > 0 {
                    self.wake_one(&mut shared);
                }
            }
        }
        Some(placed)
    }

    /// A job that was taken from `lane` has ended.
    pub(super) fn finish(&self, lane: Option<LaneId>, end: End) {
        let mut shared = self.lock();
        shared.taken -= 1;
        match end {
            // The worker that says so takes the next job itself.
            End::Done => shared.lanes.done(lane),
            End::Hold(job, until) => {
                let earliest = shared.lanes.hold(lane, job, until);
                if earliest {
                    self.timer.notify_one();
                }
            }
            End::Fatal(error) => {
                drop(shared);
                self.fail(error);
            }
        }
    }

    /// All jobs of a batch have ended, which are in no lane.
    pub(super) fn finish_batch(&self, jobs: usize) {
        self.lock().taken -= jobs;
    }

    /// The subscription cannot go on.
    pub(super) fn fail(&self, error: String) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.cancel();
    }

    /// How many workers handle something now.
    pub(super) fn busy(&self) -> usize {
        let shared = self.lock();
        shared.taken.min(shared.workers)
    }

    /// Why the subscription cannot go on, if a worker said so.
    pub(super) fn fatal(&self) -> Option<String> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Makes held jobs ready whose time has come: how many workers are to be started for them, and when
    /// the next one's time comes.
    pub(super) fn release(&self) -> (usize, Option<Instant>) {
        let mut shared = self.lock();
        let next = shared.lanes.release(Instant::now());
        (self.employ(&mut shared), next)
    }

    /// Drops held jobs that were taken away meanwhile; how many workers are to be started for those
    /// behind them.
    pub(super) fn drop_revoked(&self) -> usize {
        let mut shared = self.lock();
        let revoked = shared.lanes.drop_held(|job| !job.settle.is_revoked());
        let missing = self.employ(&mut shared);
        drop(shared);
        for job in revoked {
            job.end(|counters| &counters.revoked);
        }
        missing
    }

    /// Gives back all that no worker has.
    pub(super) fn give_back(&self) {
        // Dropped after the lock is released.
        let jobs = self.lock().lanes.drain();
        drop(jobs);
    }

    /// Holds the subscription back until the guard is dropped: no job is taken.
    pub(super) fn pause(&self, reason: &str) -> Paused<'_> {
        self.watched.pause(reason);
        Paused(self)
    }
}

/// While it lives, no job is taken.
pub(super) struct Paused<'r>(&'r Runner);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.watched.resume();
        let mut shared = self.0.lock();
        self.0.work.add_permits(std::mem::take(&mut shared.idle));
    }
}
