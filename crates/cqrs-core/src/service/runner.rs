use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::job::Job;
use super::lanes::{LaneId, Lanes, Run};
use super::spec::Spec;
use super::state::Watched;
use super::target::Kind;
use crate::causes::causes;
use crate::consume::{Source, SourceError};
use crate::dispatch::panic_message;

/// One running subscription: what its workers share.
///
/// A worker that finds nothing to do takes the source, if it is there, and waits for deliveries (it
/// leads). It puts what comes into the lanes and the source back, and works. So what is fetched is
/// handled by who fetched it, and no more of it waits here than the workers can do soon.
///
/// # Invariants
/// 1. Every [`Job`] is owned by exactly one of: `lanes`, a worker, a manual [`Delivery`](super::Delivery).
///    Whoever drops it gives the message back; only [`Settle::ack`](crate::consume::Settle::ack) settles.
/// 2. A worker acks only after its handler returned `Ok`, a copy or dead letter was confirmed, or a
///    policy said so. A panic is caught inside the attempt; a worker that is aborted drops its jobs.
/// 3. At most `concurrency` workers exist. Each runs at most one job at a time (a batch worker one
///    batch); what it took beyond that one goes back to the lanes as soon as that one has to wait.
/// 4. After `stop` no job is begun any more; after `abort` the workers are gone.
/// 5. Who waits is woken while there is a job to take, or a source to wait for that nobody has.
/// 6. The lock is never held across an `.await`, nor while code of others runs (a dropped job runs some),
///    but for [`Settle::is_revoked`](crate::consume::Settle::is_revoked), which must be cheap.
pub(super) struct Runner {
    pub(super) spec: Spec,
    pub(super) watched: Arc<Watched>,
    shared: Mutex<Shared>,
    hashes: RandomState,
    /// How many handlers that never wait can run at once.
    threads: usize,
    /// One permit for each waiting worker that was chosen to look again.
    work: Semaphore,
    /// Something for the subscription's own task: a job is held whose time comes earlier than that of the
    /// others, or a worker is missing.
    pub(super) attention: Notify,
    /// The source was put back.
    home: Notify,
    /// Takes nothing new any more.
    pub(super) stop: CancellationToken,
    /// Why the subscription cannot go on, when a worker found that out.
    fatal: Mutex<Option<String>>,
}

struct Shared {
    lanes: Lanes<Job>,
    /// Gone while somebody leads.
    source: Option<Box<dyn Source>>,
    /// The subscription's task is gone: the source is dropped, not put back.
    left: bool,
    /// Workers that wait and were not chosen to look again. A worker adds itself while it sees that
    /// there is nothing; whoever chooses it takes it away: so no wake-up is lost.
    idle: usize,
    workers: usize,
    /// Workers that have jobs.
    busy: usize,
}

/// How often held deliveries are asked whether they were revoked.
pub(super) const HELD_CHECK: Duration = Duration::from_secs(1);

/// How [`Runner::wait`] ended.
pub(super) enum Waited {
    Over,
    Revoked,
    Stopped,
}

/// How many deliveries are taken from a source before they are handled.
pub(super) const FETCH: usize = 128;

/// How long deliveries wait for a worker to lead, when all of them are busy for longer than that.
const UNLED: Duration = Duration::from_millis(100);

/// The source in the hands of the one who waits for deliveries. Dropped, it is put back.
pub(super) struct Lead<'r> {
    runner: &'r Runner,
    /// Gone once it was put back.
    source: Option<Box<dyn Source>>,
}

/// What came from a source at once.
pub(super) struct Fetched {
    pub(super) jobs: Vec<Job>,
    pub(super) end: Option<Result<(), SourceError>>,
}

impl<'r> Lead<'r> {
    pub(super) fn new(runner: &'r Runner, source: Box<dyn Source>) -> Self {
        Self { runner, source: Some(source) }
    }

    /// Takes what there is now, at most [`FETCH`]; waits for the first. Cancel safe: a cancelled call has
    /// taken nothing, because it takes only in the poll in which it ends.
    pub(super) async fn fetch(&mut self) -> Fetched {
        let (runner, Some(source)) = (self.runner, &mut self.source) else {
            return std::future::pending().await;
        };
        poll_fn(|cx| {
            let mut jobs = Vec::new();
            let mut end = None;
            while jobs.len() < FETCH && end.is_none() {
                // Sources are code of others. What came before the panic is kept, in order, and nobody
                // polls the source again.
                let polled = catch_unwind(AssertUnwindSafe(|| source.poll_next(cx)));
                let polled = polled.unwrap_or_else(|panic| {
                    let text = format!("its source panicked: {}", panic_message(panic));
                    Poll::Ready(Some(Err(SourceError::new(text))))
                });
                match polled {
                    Poll::Ready(Some(Ok(delivery))) => {
                        jobs.push(Job::new(delivery, &runner.watched));
                    }
                    Poll::Ready(Some(Err(error))) => end = Some(Err(error)),
                    Poll::Ready(None) => end = Some(Ok(())),
                    Poll::Pending => break,
                }
            }
            match jobs.is_empty() && end.is_none() {
                true => Poll::Pending,
                false => Poll::Ready(Fetched { jobs, end }),
            }
        })
        .await
    }

    /// Puts the source back, and `jobs` into the lanes, before anybody else can lead.
    pub(super) fn end(mut self, jobs: impl Iterator<Item = Job>) {
        if let Some(source) = self.source.take() {
            self.runner.put_back(source, jobs);
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            self.runner.put_back(source, std::iter::empty());
        }
    }
}

impl Runner {
    pub(super) fn new(
        spec: Spec,
        watched: Arc<Watched>,
        source: Box<dyn Source>,
        stop: CancellationToken,
    ) -> Self {
        let (lanes, source) = (Lanes::default(), Some(source));
        Self {
            spec,
            watched,
            shared: Mutex::new(Shared { lanes, source, left: false, idle: 0, workers: 0, busy: 0 }),
            hashes: RandomState::new(),
            threads: Handle::current().metrics().num_workers(),
            work: Semaphore::new(0),
            attention: Notify::new(),
            home: Notify::new(),
            stop,
            fatal: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source, if nobody has it.
    pub(super) fn lead(&self) -> Option<Lead<'_>> {
        let source = self.lock().source.take()?;
        Some(Lead::new(self, source))
    }

    /// The source, once nobody has it any more.
    pub(super) async fn take_source(&self) -> Box<dyn Source> {
        loop {
            if let Some(source) = self.lock().source.take() {
                return source;
            }
            self.home.notified().await;
        }
    }

    /// Drops the source, now or when who leads puts it back.
    pub(super) fn leave(&self) {
        let mut shared = self.lock();
        shared.left = true;
        let source = shared.source.take();
        drop(shared);
        drop(source);
    }

    /// Somebody who led does so no more; `jobs` is what came, in order.
    pub(super) fn put_back(&self, source: Box<dyn Source>, jobs: impl Iterator<Item = Job>) {
        let mut shared = self.lock();
        if shared.left {
            drop(shared);
            return drop(source);
        }
        for job in jobs {
            let lane = self.lane(&job);
            shared.lanes.push(lane, job);
        }
        shared.source = Some(source);
        self.home.notify_one();
        // Whoever puts it back runs no handler before it looks for a job itself.
        let _ = self.employ(&mut shared);
    }

    /// Sees to it that somebody takes what is ready, and waits for more: wakes one who waits, or asks for
    /// one more worker. Whoever comes does the same, so a burst of short jobs does not bring all of them
    /// for what one can do.
    ///
    /// `true`: the subscription's own task was woken, or who leads. Both are to run before a handler that
    /// may block does ([`step_aside`]).
    #[must_use]
    fn employ(&self, shared: &mut Shared) -> bool {
        let (idle, leads) = (shared.idle, shared.source.is_none());
        if self.lacks_worker(shared) {
            self.attention.notify_one();
            return true;
        }
        leads && shared.idle < idle
    }

    /// As [`employ`](Self::employ), but leaves it to the caller to start a worker.
    fn lacks_worker(&self, shared: &mut Shared) -> bool {
        if shared.lanes.ready() == 0 && shared.source.is_none() {
            return false;
        }
        if shared.idle > 0 {
            shared.idle -= 1;
            self.work.add_permits(1);
            return false;
        }
        shared.busy == shared.workers && shared.workers < self.spec.limits.concurrency
    }

    /// Whether all messages are handled one after the other.
    pub(super) fn is_strict(&self) -> bool {
        self.spec.limits.concurrency == 1
    }

    /// Strict order is one lane for all. A batch takes what it gets in order, and runs alone.
    fn lane(&self, job: &Job) -> Option<LaneId> {
        if matches!(self.spec.handler, Kind::Batch(..)) {
            return None;
        }
        if self.is_strict() {
            return Some(0);
        }
        let key = job.message.key.as_ref()?;
        Some(self.hashes.hash_one((&*job.message.topic, key)))
    }

    /// Adds the next jobs to `run`, up to `max` in all; `None` once the subscription stops. `Some(true)`:
    /// [`step_aside`] before the first of them.
    pub(super) async fn take(&self, run: &mut Run<Job>, max: usize) -> Option<bool> {
        loop {
            if self.stop.is_cancelled() {
                return None;
            }
            let mut lead = match self.look(run, max) {
                Look::Taken { aside } => return Some(aside),
                Look::Lead(lead) => Some(lead),
                Look::Wait => None,
            };
            let fetch = async {
                match &mut lead {
                    Some(lead) => lead.fetch().await,
                    None => std::future::pending().await,
                }
            };
            let fetched = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                permit = self.work.acquire() => {
                    permit.into_iter().for_each(SemaphorePermit::forget);
                    None
                }
                fetched = fetch => Some(fetched),
            };
            if let (Some(lead), Some(fetched)) = (lead, fetched) {
                self.wait_no_more();
                self.arrived(lead, fetched);
            }
        }
    }

    /// Leads while all workers are busy for long: what comes is fetched, up to the subscription's limit,
    /// and an end of the source is noticed.
    pub(super) async fn stand_in(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(UNLED).await;
            if let Some(mut lead) = self.lead() {
                let fetched = lead.fetch().await;
                self.arrived(lead, fetched);
            }
        }
    }

    /// What came while somebody led.
    pub(super) fn arrived(&self, lead: Lead<'_>, fetched: Fetched) {
        let Fetched { jobs, end } = fetched;
        // Said before somebody else can lead.
        match end {
            None => {}
            Some(Ok(())) => self.fail("its source ended by itself".to_owned()),
            Some(Err(error)) => self.fail(causes(&error)),
        }
        lead.end(jobs.into_iter());
    }

    /// The next jobs if they come before `until`. Only for a worker that is the only one.
    pub(super) async fn take_before(&self, until: Instant, run: &mut Run<Job>, max: usize) -> bool {
        match tokio::time::timeout_at(until, self.take(run, max)).await {
            Ok(taken) => taken.is_some(),
            Err(_) => {
                self.wait_no_more();
                false
            }
        }
    }

    /// A worker that waited does so no more, without that it was woken. If it was chosen at the same moment
    /// the permit is there, or somebody else who waits has it and counts in its place.
    fn wait_no_more(&self) {
        let mut shared = self.lock();
        match self.work.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => shared.idle = shared.idle.saturating_sub(1),
        }
    }

    /// Takes jobs; or the worker counts as waiting, and takes the source, if it is there.
    fn look(&self, run: &mut Run<Job>, max: usize) -> Look<'_> {
        let mut shared = self.lock();
        let had = run.len();
        if !self.watched.is_paused() {
            let max = max.min(had + self.share(&shared));
            shared.lanes.take(run, max);
        }
        if run.len() > had {
            shared.busy += usize::from(had == 0);
            return Look::Taken { aside: self.employ(&mut shared) };
        }
        shared.idle += 1;
        match shared.source.take() {
            Some(source) => Look::Lead(Lead::new(self, source)),
            None => Look::Wait,
        }
    }

    /// How much of what is ready one worker takes at once: not what others could run meanwhile.
    fn share(&self, shared: &Shared) -> usize {
        match self.threads.min(self.spec.limits.concurrency) {
            1 => FETCH,
            workers => shared.lanes.ready().div_ceil(workers),
        }
    }

    /// The jobs that a worker took have ended; `ended`: those of these lanes just now.
    pub(super) fn finish(&self, ended: &mut Vec<LaneId>) {
        let mut shared = self.lock();
        shared.busy -= 1;
        // The worker that says so looks for the next ones itself.
        ended.drain(..).for_each(|lane| shared.lanes.done(lane));
    }

    /// A worker's job of `lane` has to wait: others take what the worker took beyond it. `true` as in
    /// [`employ`](Self::employ).
    pub(super) fn spread(
        &self,
        lane: Option<LaneId>,
        run: &mut Run<Job>,
        ended: &mut Vec<LaneId>,
    ) -> bool {
        if run.is_empty() && ended.is_empty() {
            return false;
        }
        let mut shared = self.lock();
        ended.drain(..).for_each(|lane| shared.lanes.done(lane));
        shared.lanes.put_back(lane, run);
        self.employ(&mut shared)
    }

    /// A job that was taken from `lane` is to be taken again, not before `until`. `true` as in
    /// [`employ`](Self::employ).
    pub(super) fn hold(&self, lane: Option<LaneId>, job: Job, until: Instant) -> bool {
        let earliest = self.lock().lanes.hold(lane, job, until);
        if earliest {
            self.attention.notify_one();
        }
        earliest
    }

    /// Waits until `until` with jobs that no lane holds. Ends earlier when the subscription stops or, at most
    /// [`HELD_CHECK`] later, when a job was revoked.
    pub(super) async fn wait(&self, until: Instant, is_revoked: impl Fn() -> bool) -> Waited {
        loop {
            let next = until.min(Instant::now() + HELD_CHECK);
            tokio::select! {
                () = self.stop.cancelled() => return Waited::Stopped,
                () = tokio::time::sleep_until(next) => {}
            }
            if is_revoked() {
                return Waited::Revoked;
            }
            if next == until {
                return Waited::Over;
            }
        }
    }

    /// The subscription cannot go on.
    pub(super) fn fail(&self, error: String) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.cancel();
    }

    /// How many workers handle something now.
    pub(super) fn busy(&self) -> usize {
        self.lock().busy
    }

    /// Why the subscription cannot go on, if a worker said so.
    pub(super) fn fatal(&self) -> Option<String> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Drops held jobs that were taken away meanwhile, and makes those ready whose time has come. Whether
    /// a worker is to be started, and when the next one's time comes.
    pub(super) fn release(&self) -> (bool, Option<Instant>) {
        let mut shared = self.lock();
        let revoked = shared.lanes.drop_held(|job| !job.settle.is_revoked());
        let next = shared.lanes.release(Instant::now());
        let missing = self.lacks_worker(&mut shared);
        shared.workers += usize::from(missing);
        drop(shared);
        for job in revoked {
            job.end(|counters| &counters.revoked);
        }
        (missing, next)
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

/// Lets the task run that was woken last, on another thread if need be. A task that is woken waits in a
/// slot of this thread that no other thread looks into, and a handler that blocks would keep it there;
/// `tokio::task::yield_now` waits in a place of the same kind.
pub(super) async fn step_aside() {
    let mut aside = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut aside, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What a worker finds.
enum Look<'r> {
    Taken { aside: bool },
    Lead(Lead<'r>),
    Wait,
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
