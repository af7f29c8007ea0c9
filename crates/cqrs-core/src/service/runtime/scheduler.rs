//! The scheduler of one subscription: its source, lanes and workers, under one lock.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use foldhash::quality::RandomState;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fetch::{FETCH, SourceEnd, fetch};
use super::handler::HandlerKind;
use super::job::Job;
use super::lanes::{LaneId, Lanes, Run};
use super::monitor::Monitor;
use super::spec::Spec;
use super::stop_flag::StopFlag;
use crate::consume::support::error_chain;
use crate::consume::{Fetch, Source, Spare};

/// The time after which the subscription's task polls a source that no worker polls.
const UNPOLLED: Duration = Duration::from_millis(100);

/// The lane of all jobs in strict order.
const STRICT: LaneId = 0;

/// Hands jobs to workers, and the source to one idle worker at a time.
///
/// A worker without a job takes the source, if it is free, and polls it. It puts the deliveries into
/// the lanes, returns the source and takes a job. So the worker that fetched a delivery usually handles it,
/// and no more deliveries are fetched than the workers can soon handle.
pub(super) struct Scheduler {
    state: Mutex<SchedulerState>,
    monitor: Arc<Monitor>,
    concurrency: usize,
    is_batch: bool,
    hashes: RandomState,
    /// The number of handlers that can run at once if none of them waits.
    threads: usize,
    /// One permit for each idle worker that was woken.
    wake_ups: Semaphore,
    /// Wakes the subscription's task: a held job is due earlier than the others, or a worker is missing.
    pub(super) supervisor: Notify,
    source_returned: Notify,
    /// No job is started once this is cancelled.
    pub(super) stop: CancellationToken,
    /// As `stop`, to be read for each job: without the lock of the token.
    stopped: StopFlag,
    /// The error that ended the subscription.
    fatal: Mutex<Option<String>>,
}

struct SchedulerState {
    lanes: Lanes<Job>,
    /// `None` while it is polled.
    source: Option<Box<dyn Source>>,
    /// For the next fetch. Empty while the source is polled.
    fetch: Fetch,
    /// The parts of acked jobs, for the next fetch.
    spare: Spare,
    /// Set when the subscription's task is gone: a returned source is dropped.
    closed: bool,
    /// Workers that wait and were not woken. A worker adds itself under the lock when there is no job, and
    /// is subtracted by the caller that wakes it: so no wake-up is lost.
    idle: usize,
    workers: usize,
    /// Workers that have jobs.
    busy: usize,
}

/// The source while it is polled. Dropped, it is returned.
pub(super) struct SourceLease<'s> {
    scheduler: &'s Scheduler,
    /// `None` once it was returned.
    source: Option<Box<dyn Source>>,
    fetch: Fetch,
}

impl SourceLease<'_> {
    /// Cancel safe, as [`fetch`].
    async fn fetch(&mut self) -> SourceEnd {
        match &mut self.source {
            Some(source) => fetch(&mut **source, &mut self.fetch).await,
            None => pending().await,
        }
    }

    /// Returns the source and its fetched jobs.
    fn give_back(&mut self) {
        if let Some(source) = self.source.take() {
            self.scheduler.return_source(source, std::mem::take(&mut self.fetch));
        }
    }

    /// Puts the fetched jobs into the lanes, and then returns the source.
    fn end(mut self, end: SourceEnd) {
        // Before another worker can poll the source.
        match end {
            None => {}
            Some(Ok(())) => self.scheduler.fail("its source ended by itself".to_owned()),
            Some(Err(error)) => self.scheduler.fail(error_chain(&error)),
        }
        self.give_back();
    }
}

impl Drop for SourceLease<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// The result of [`Scheduler::try_take`].
enum Taken<'s> {
    Jobs { yields: bool },
    Source(SourceLease<'s>),
    Nothing,
}

impl Scheduler {
    pub(super) fn new(
        spec: &Spec,
        monitor: Arc<Monitor>,
        source: Box<dyn Source>,
        stop: CancellationToken,
    ) -> Self {
        let (lanes, source) = (Lanes::default(), Some(source));
        let state = SchedulerState {
            lanes,
            source,
            fetch: Fetch::default(),
            spare: Spare::default(),
            closed: false,
            idle: 0,
            workers: 0,
            busy: 0,
        };
        Self {
            state: Mutex::new(state),
            monitor,
            concurrency: spec.limits.concurrency,
            is_batch: matches!(spec.handler, HandlerKind::Batch { .. }),
            hashes: RandomState::default(),
            threads: Handle::current().metrics().num_workers(),
            wake_ups: Semaphore::new(0),
            supervisor: Notify::new(),
            source_returned: Notify::new(),
            stopped: StopFlag::of(&stop),
            stop,
            fatal: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, SchedulerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.is_set()
    }

    // ---- source

    /// The source, once it is not polled.
    pub(super) async fn take_source(&self) -> Box<dyn Source> {
        loop {
            if let Some(source) = self.lock().source.take() {
                return source;
            }
            self.source_returned.notified().await;
        }
    }

    /// Drops the source, now or when it is returned.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let spare = (std::mem::take(&mut state.fetch), std::mem::take(&mut state.spare));
        let source = state.source.take();
        drop(state);
        drop((source, spare));
    }

    fn return_source(&self, source: Box<dyn Source>, mut fetch: Fetch) {
        let mut state = self.lock();
        let (deliveries, spare) = fetch.parts();
        self.monitor.counters.received.add(deliveries.len());
        let jobs = deliveries.map(|delivery| Job::new(delivery, &self.monitor, spare));
        if state.closed {
            drop(state);
            jobs.for_each(drop);
            return drop(source);
        }
        match self.is_strict() && !self.is_batch {
            true => state.lanes.push_all(STRICT, jobs),
            false => jobs.for_each(|job| state.lanes.push(self.lane(&job), job)),
        }
        state.source = Some(source);
        state.spare.wants_settles = fetch.spare.wants_settles;
        state.fetch = fetch;
        self.source_returned.notify_one();
        // The caller runs no handler before it looks for a job itself.
        let _ = self.wake_worker(&mut state);
    }

    /// Polls the source while all workers are busy for long: deliveries are fetched up to the subscription's
    /// limit, and an end of the source is noticed.
    pub(super) async fn poll_while_busy(&self) -> Infallible {
        loop {
            tokio::time::sleep(UNPOLLED).await;
            let lease = self.lease_source(&mut self.lock());
            if let Some(lease) = lease {
                Self::poll_source(lease).await;
            }
        }
    }

    async fn poll_source(mut lease: SourceLease<'_>) {
        let end = lease.fetch().await;
        lease.end(end);
    }

    fn lease_source(&self, state: &mut SchedulerState) -> Option<SourceLease<'_>> {
        let source = Some(state.source.take()?);
        let mut fetch = std::mem::take(&mut state.fetch);
        fetch.spare.append(&mut state.spare);
        Some(SourceLease { scheduler: self, source, fetch })
    }

    // ---- workers

    /// Wakes one idle worker, or requests a new one, if jobs are ready or the source is free. The woken
    /// worker does the same, so a burst of short jobs does not wake all of them for the work of one.
    ///
    /// `true`: the subscription's task was woken, or the worker that polls the source. Both must run before
    /// a handler that may block: see [`yield_lifo_slot`].
    #[must_use]
    fn wake_worker(&self, state: &mut SchedulerState) -> bool {
        let (idle, is_polled) = (state.idle, state.source.is_none());
        if self.needs_worker(state) {
            self.supervisor.notify_one();
            return true;
        }
        is_polled && state.idle < idle
    }

    /// As [`wake_worker`](Self::wake_worker), but a missing worker is started by the caller.
    fn needs_worker(&self, state: &mut SchedulerState) -> bool {
        if state.lanes.ready() == 0 && state.source.is_none() {
            return false;
        }
        if state.idle > 0 {
            state.idle -= 1;
            self.wake_ups.add_permits(1);
            return false;
        }
        state.busy == state.workers && state.workers < self.concurrency
    }

    /// `true` if all messages are handled one after the other.
    pub(super) fn is_strict(&self) -> bool {
        self.concurrency == 1
    }

    /// Strict order is one lane for all. A batch takes jobs in order of arrival, and runs alone.
    fn lane(&self, job: &Job) -> Option<LaneId> {
        if self.is_batch {
            return None;
        }
        if self.is_strict() {
            return Some(STRICT);
        }
        let key = job.received.key.as_ref()?;
        Some(self.hashes.hash_one((&*job.received.topic, key)))
    }

    /// Adds the next jobs to `run`, up to `max` in all; `None` once the subscription stops. `Some(true)`:
    /// [`yield_lifo_slot`] before the first of them.
    pub(super) async fn take(&self, run: &mut Run<Job>, max: usize) -> Option<bool> {
        loop {
            if self.is_stopped() {
                return None;
            }
            let mut lease = match self.try_take(run, max) {
                Taken::Jobs { yields } => return Some(yields),
                Taken::Source(lease) => Some(lease),
                Taken::Nothing => None,
            };
            let fetch = async {
                match &mut lease {
                    Some(lease) => lease.fetch().await,
                    None => pending().await,
                }
            };
            let fetched: Option<SourceEnd> = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                permit = self.wake_ups.acquire() => {
                    permit.into_iter().for_each(SemaphorePermit::forget);
                    None
                }
                end = fetch => Some(end),
            };
            if let (Some(lease), Some(end)) = (lease, fetched) {
                self.unregister_idle();
                lease.end(end);
            }
        }
    }

    /// Adds the next jobs if there are some before `until`. Only for a worker that is the only one.
    pub(super) async fn take_before(&self, until: Instant, run: &mut Run<Job>, max: usize) -> bool {
        match tokio::time::timeout_at(until, self.take(run, max)).await {
            Ok(taken) => taken.is_some(),
            Err(_) => {
                self.unregister_idle();
                false
            }
        }
    }

    /// Removes a worker from the idle count without a wake-up. If it was woken at the same moment, its
    /// permit is there, or another idle worker has it and is removed in its place.
    fn unregister_idle(&self) {
        let mut state = self.lock();
        match self.wake_ups.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => state.idle = state.idle.saturating_sub(1),
        }
    }

    /// Takes jobs. If there are none, the worker counts as idle, and takes the source if it is free.
    fn try_take(&self, run: &mut Run<Job>, max: usize) -> Taken<'_> {
        let mut state = self.lock();
        let had = run.len();
        if !self.monitor.is_paused() {
            let max = max.min(had + self.share(&state));
            state.lanes.take(run, max);
        }
        if run.len() > had {
            state.busy += usize::from(had == 0);
            return Taken::Jobs { yields: self.wake_worker(&mut state) };
        }
        state.idle += 1;
        self.lease_source(&mut state).map_or(Taken::Nothing, Taken::Source)
    }

    /// The number of ready jobs that one worker takes at once: not those that others could run meanwhile.
    fn share(&self, state: &SchedulerState) -> usize {
        match self.threads.min(self.concurrency) {
            1 => FETCH,
            workers => state.lanes.ready().div_ceil(workers),
        }
    }

    /// The number of workers that have jobs.
    pub(super) fn busy(&self) -> usize {
        self.lock().busy
    }

    // ---- jobs

    /// Ends the jobs that a worker took, and the lanes in `ended`. Takes the `spare` parts for the next fetch.
    pub(super) fn finish(&self, ended: &mut Vec<LaneId>, spare: &mut Spare) {
        let mut state = self.lock();
        state.spare.append(spare);
        state.busy -= 1;
        // The calling worker looks for the next jobs itself.
        ended.drain(..).for_each(|lane| state.lanes.done(lane));
        drop(state);
        spare.clear();
    }

    /// Returns the jobs that a worker took beyond the one of `lane`, which has to wait. The result is that
    /// of [`wake_worker`](Self::wake_worker).
    pub(super) fn return_jobs(
        &self,
        lane: Option<LaneId>,
        run: &mut Run<Job>,
        ended: &mut Vec<LaneId>,
    ) -> bool {
        if run.is_empty() && ended.is_empty() {
            return false;
        }
        let mut state = self.lock();
        ended.drain(..).for_each(|lane| state.lanes.done(lane));
        state.lanes.put_back(lane, run);
        self.wake_worker(&mut state)
    }

    /// Holds a job that was taken from `lane`: it is taken again, not before `until`. The result is that of
    /// [`wake_worker`](Self::wake_worker).
    pub(super) fn hold(&self, lane: Option<LaneId>, job: Job, until: Instant) -> bool {
        let is_earliest = self.lock().lanes.hold(lane, job, until);
        if is_earliest {
            self.supervisor.notify_one();
        }
        is_earliest
    }

    /// Drops held jobs that were revoked, and makes the due ones ready. Returns `true` if the caller must
    /// start a worker, and the time at which the next held job is due.
    pub(super) fn release_due(&self) -> (bool, Option<Instant>) {
        let mut state = self.lock();
        let revoked = state.lanes.drop_held(|job| !job.settle.is_revoked());
        let next = state.lanes.release(Instant::now());
        let needs_worker = self.needs_worker(&mut state);
        state.workers += usize::from(needs_worker);
        drop(state);
        for job in revoked {
            job.count_as(|counters| &counters.revoked);
        }
        (needs_worker, next)
    }

    /// Gives back all jobs that no worker has.
    pub(super) fn give_back(&self) {
        // Dropped after the lock is released.
        let jobs = self.lock().lanes.drain();
        drop(jobs);
    }

    // ---- pause and end

    /// Pauses the subscription until the guard is dropped: no job is taken.
    pub(super) fn pause(&self, reason: &str) -> Paused<'_> {
        self.monitor.pause(reason);
        Paused(self)
    }

    /// Ends the subscription with an error.
    pub(super) fn fail(&self, error: String) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.cancel();
    }

    /// The error of [`fail`](Self::fail).
    pub(super) fn fatal(&self) -> Option<String> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// No job is taken while it lives.
pub(super) struct Paused<'s>(&'s Scheduler);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.monitor.resume();
        let mut state = self.0.lock();
        self.0.wake_ups.add_permits(std::mem::take(&mut state.idle));
    }
}

/// Lets the task run that was woken last, on another thread if need be.
///
/// Tokio keeps a task that was woken in the LIFO slot of this thread, which other threads do not steal
/// from. A handler that blocks would keep it there. `tokio::task::yield_now` defers to a queue that has the
/// same limit.
pub(super) async fn yield_lifo_slot() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
