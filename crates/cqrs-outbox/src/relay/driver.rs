//! The loop of a relay: runs the statements and publishes that its lanes ask for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::MessageBroker;
use cqrs_core::broker::BoxFuture;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::RelayReport;
use super::effects::{Delete, LaneEpoch, Move, RowId};
use super::lane::ParkedEntry;
use super::lanes::{Lanes, Load, Outcome, Publish, ReadAnswer, ReadStep};
use super::outage::{Outage, text_of};
use super::publisher::{Answer, Publisher, Sends};
use super::settings::Settings;
use super::share::fair_share;
use super::status::Progress;
use super::store::{Payload, ReadEntry, Store, View};
use crate::error::{OutboxError, OutboxErrorKind};

/// Confirmed rows that are deleted at once, and the longest that one waits for others.
const DELETES: usize = 1_000;
const DELETE_AFTER: Duration = Duration::from_millis(20);

/// Rows that one statement parks or declares dead.
const MOVES: usize = 500;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The longest that a relay takes to release its lanes at its end.
const LEAVE: Duration = Duration::from_secs(5);

/// Between two notifications of other processes.
const NOTIFY_AFTER: Duration = Duration::from_millis(10);

/// The longest pause between two tries, while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The statements that fail and recover apart from each other: a server in recovery reads, and does not write.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Heartbeat,
    Lanes,
    Read,
    Delete,
    Move,
    Load,
    Notify,
}

/// A statement that is through.
enum Done {
    Hot(Result<ReadAnswer<ReadEntry>, OutboxError>),
    Ids(Result<ReadAnswer<RowId>, OutboxError>),
    Rows(Result<ReadAnswer<ReadEntry>, OutboxError>),
    Deleted(Vec<Delete>, i64, Result<Option<u64>, OutboxError>),
    Moved(Vec<Move>, Result<Vec<i16>, OutboxError>),
    Loaded(Load, Result<HashMap<RowId, Payload>, OutboxError>),
    Seen(i64, Result<View, OutboxError>),
    Lanes(Result<Changed, OutboxError>),
    Notified(Result<(), OutboxError>),
}

/// A change of the owned lanes.
struct Changed {
    taken: Vec<LaneEpoch>,
    parked: Vec<ParkedEntry>,
    released: Vec<LaneEpoch>,
}

/// The statements that run, at most one of each kind.
#[derive(Default)]
struct Running {
    delete: bool,
    change: bool,
    load: bool,
    membership: bool,
    notify: bool,
}

pub(super) struct Driver<S> {
    pub(super) store: Arc<S>,
    pub(super) relay: Uuid,
    pub(super) settings: Settings,
    pub(super) progress: Arc<Progress>,
    lanes: Lanes<Payload>,
    started: Instant,
    publisher: Publisher,
    statements: FuturesUnordered<BoxFuture<'static, Done>>,
    running: Running,
    /// By [`Kind`].
    outages: [Outage; 7],
    /// Moves that are made one by one, after a batch that the database refused.
    single_moves: usize,
    /// Set if what was read is to be forgotten once the running read ends.
    needs_reset: bool,
    heartbeat_at: Duration,
    poll_at: Duration,
    sweep_at: Duration,
    read_started: Duration,
    is_sweeping: bool,
    /// Reads in a row that found nothing.
    empty_reads: u32,
    delete_at: Option<Duration>,
    notify_at: Duration,
    wants_notify: bool,
    has_peers: bool,
    is_stopping: bool,
    /// The time of the last heartbeat, and the rows published until then.
    measured: (Duration, u64),
}

impl<S: Store> Driver<S> {
    pub(super) fn new(
        store: Arc<S>,
        relay: Uuid,
        broker: Arc<dyn MessageBroker>,
        settings: Settings,
        progress: Arc<Progress>,
    ) -> Self {
        let lanes = Lanes::new(settings.window, settings.backoff);
        let publisher = Publisher::new(broker, settings.dead_letters_unroutable);
        let sweep_at = settings.sweep;
        Self {
            store,
            relay,
            settings,
            progress,
            lanes,
            publisher,
            started: Instant::now(),
            statements: FuturesUnordered::new(),
            running: Running::default(),
            outages: [
                "heartbeat",
                "lanes",
                "reading rows",
                "deleting rows",
                "moving rows",
                "loading rows",
                "notifying",
            ]
            .map(|what| Outage::new(what, LONGEST_PAUSE)),
            single_moves: 0,
            needs_reset: false,
            heartbeat_at: Duration::ZERO,
            poll_at: Duration::ZERO,
            sweep_at,
            read_started: Duration::ZERO,
            is_sweeping: false,
            empty_reads: 0,
            delete_at: None,
            notify_at: Duration::ZERO,
            wants_notify: false,
            has_peers: false,
            is_stopping: false,
            measured: (Duration::ZERO, 0),
        }
    }

    /// Runs until `stop`, and then until all in flight is settled, at most for the drain.
    pub(super) async fn run(
        mut self,
        stop: CancellationToken,
        mut written: watch::Receiver<()>,
        notified: Arc<Notify>,
    ) -> RelayReport {
        let mut deadline = None;
        loop {
            if !self.is_stopping && (stop.is_cancelled() || self.publisher.is_closed()) {
                self.is_stopping = true;
                self.heartbeat_at = Duration::ZERO;
                deadline = Some(self.now() + self.settings.drain);
            }
            if self.is_stopping {
                self.lanes.drain(usize::MAX);
            }
            let now = self.now();
            if self.is_stopping && self.lanes.owned().len() == 0 && self.is_settled() {
                break;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                break;
            }
            self.publisher.observe(now);
            self.start_publishes(now);
            self.start_statements(now);
            self.report();
            let wake_at = self.wake_at(now, deadline);
            tokio::select! {
                Some(done) = self.statements.next() => self.done(done),
                answers = self.publisher.answers() => {
                    answers.into_iter().for_each(|answer| self.published(answer));
                }
                Ok(()) = written.changed() => {
                    self.lanes.wake();
                    self.wants_notify = true;
                }
                () = notified.notified() => self.lanes.wake(),
                () = stop.cancelled(), if !self.is_stopping => {}
                () = tokio::time::sleep_until(self.started + wake_at) => {}
            }
        }
        self.end().await
    }

    /// Leaves. What is in flight may still arrive, and is sent again by the next owner.
    async fn end(mut self) -> RelayReport {
        let unsettled = self.lanes.in_flight() + self.lanes.pending_deletes();
        let leave = async {
            // First, so that others can take them if a statement that runs does not end.
            let owned: Vec<_> = self.lanes.owned().collect();
            if !owned.is_empty() {
                self.store.release(&owned).await?;
            }
            while self.statements.next().await.is_some() {}
            self.store.leave().await
        };
        // Statements that still run then are cut off.
        match tokio::time::timeout(LEAVE, leave).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the relay of the outbox ends without a goodbye")
            }
            Err(_late) => tracing::warn!("the relay of the outbox ends while its database is away"),
        }
        RelayReport {
            published: self.progress.published(),
            unsettled,
            is_broker_closed: self.publisher.is_closed(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_settled(&self) -> bool {
        self.statements.is_empty() && self.publisher.is_idle() && self.lanes.pending_deletes() == 0
    }

    fn report(&self) {
        let is_away = self.outages.iter().any(|outage| outage.retry_at().is_some());
        self.progress.set_away(is_away, self.publisher.is_away());
        self.progress.set_lanes(self.lanes.owned().len(), self.publisher.in_flight());
    }

    /// The time of the next thing to do. What was due before waits for an answer, and that wakes, too.
    fn wake_at(&self, now: Duration, deadline: Option<Duration>) -> Duration {
        let reading = (!self.is_stopping).then_some(self.poll_at.min(self.sweep_at));
        let notify = (self.wants_notify && self.has_peers).then_some(self.notify_at);
        let times = [
            deadline,
            Some(self.heartbeat_at),
            reading,
            self.delete_at,
            notify,
            self.lanes.next_due(),
            self.publisher.wake_at(now),
        ];
        let retries = self.outages.iter().filter_map(Outage::retry_at);
        let future = times.into_iter().flatten().chain(retries).filter(|at| *at > now);
        future.min().unwrap_or(now + HEARTBEAT).min(now + HEARTBEAT)
    }

    fn waits(&self, kind: Kind, now: Duration) -> bool {
        self.outages[kind as usize].waits(now)
    }

    fn statement(&mut self, done: impl Future<Output = Done> + Send + 'static) {
        self.statements.push(Box::pin(done));
    }

    fn start_statements(&mut self, now: Duration) {
        self.start_membership(now);
        self.start_read(now);
        self.start_delete(now);
        if !self.running.change && !self.waits(Kind::Move, now) {
            let most = if self.single_moves > 0 { 1 } else { MOVES };
            let moves = self.lanes.take_moves(most);
            if !moves.is_empty() {
                self.running.change = true;
                let store = Arc::clone(&self.store);
                self.statement(async move {
                    let owned = store.change(&moves).await;
                    Done::Moved(moves, owned)
                });
            }
        }
        let may_load =
            !self.running.load && !self.waits(Kind::Load, now) && !self.publisher.waits(now);
        if let Some(load) = may_load.then(|| self.lanes.next_load(now)).flatten() {
            self.running.load = true;
            let store = Arc::clone(&self.store);
            self.statement(async move {
                let rows = store.load(&load).await;
                Done::Loaded(load, rows)
            });
        }
        let may_notify = now >= self.notify_at && !self.waits(Kind::Notify, now);
        if self.wants_notify && !self.running.notify && self.has_peers && may_notify {
            (self.wants_notify, self.running.notify) = (false, true);
            self.notify_at = now + NOTIFY_AFTER;
            let store = Arc::clone(&self.store);
            self.statement(async move { Done::Notified(store.notify().await) });
        }
    }

    fn start_membership(&mut self, now: Duration) {
        let has_drained = !self.waits(Kind::Lanes, now) && !self.lanes.drained().is_empty();
        let may_beat = now >= self.heartbeat_at && !self.waits(Kind::Heartbeat, now);
        if self.running.membership || !(has_drained || may_beat) {
            return;
        }
        self.running.membership = true;
        let store = Arc::clone(&self.store);
        if has_drained {
            let released = self.lanes.drained();
            self.statement(async move {
                let done = store.release(&released).await;
                let (taken, parked) = (Vec::new(), Vec::new());
                Done::Lanes(done.map(|()| Changed { taken, parked, released }))
            });
            return;
        }
        self.heartbeat_at = now + HEARTBEAT;
        let highest = self.lanes.highest();
        self.statement(async move { Done::Seen(highest, store.heartbeat().await) });
    }

    fn start_read(&mut self, now: Duration) {
        if self.is_stopping || self.lanes.is_reading() || self.waits(Kind::Read, now) {
            return;
        }
        if now >= self.sweep_at {
            self.is_sweeping = true;
            self.lanes.sweep();
            self.sweep_at = now + self.settings.sweep;
        } else if now >= self.poll_at {
            self.lanes.wake();
        }
        if now >= self.poll_at {
            let is_idle = self.empty_reads > 8;
            let poll = if is_idle { self.settings.idle_poll } else { self.settings.poll };
            self.poll_at = now + poll;
        }
        self.read_started = now;
        let step = self.lanes.start_read();
        self.read(step);
    }

    fn read(&mut self, step: ReadStep) {
        let store = Arc::clone(&self.store);
        match step {
            ReadStep::Hot(reads) => {
                self.statement(async move { Done::Hot(store.hot(&reads).await) });
            }
            ReadStep::Ids(ranges) => {
                self.statement(async move { Done::Ids(store.ids(&ranges).await) });
            }
            ReadStep::Rows(rows) => {
                self.statement(async move { Done::Rows(store.rows(&rows).await) });
            }
            ReadStep::End => {
                if std::mem::take(&mut self.is_sweeping) {
                    // A sweep of a table that is slow to read must not fill the relay's time.
                    let now = self.now();
                    let took = now.saturating_sub(self.read_started);
                    self.sweep_at = now + self.settings.sweep.max(took * 20);
                }
            }
        }
    }

    fn start_delete(&mut self, now: Duration) {
        let pending = self.lanes.pending_deletes();
        if self.running.delete || pending == 0 || self.waits(Kind::Delete, now) {
            return;
        }
        let at = *self.delete_at.get_or_insert(now + DELETE_AFTER);
        if pending < DELETES && now < at && !self.is_stopping {
            return;
        }
        self.delete_at = None;
        self.running.delete = true;
        let (rows, highest) = (self.lanes.take_deletes(4 * DELETES), self.lanes.highest());
        let store = Arc::clone(&self.store);
        self.statement(async move {
            let xid = store.delete(&rows).await;
            Done::Deleted(rows, highest, xid)
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Hot(Ok(answer)) => {
                self.empty_reads = if answer.rows.is_empty() { self.empty_reads + 1 } else { 0 };
                let step = self.lanes.hot_rows(answer);
                self.read_on(step);
            }
            Done::Ids(Ok(answer)) => {
                let step = self.lanes.late_ids(answer);
                self.read_on(step);
            }
            Done::Rows(Ok(answer)) => {
                self.progress.count_late(answer.rows.len());
                let step = self.lanes.late_rows(answer);
                self.read_on(step);
            }
            Done::Hot(Err(error)) | Done::Ids(Err(error)) | Done::Rows(Err(error)) => {
                self.lanes.reset();
                self.needs_reset = false;
                self.failed(Kind::Read, &error);
            }
            Done::Deleted(rows, highest, deleted) => {
                self.running.delete = false;
                match deleted {
                    Ok(xid) => {
                        self.succeeded(Kind::Delete);
                        xid.into_iter().for_each(|xid| self.lanes.mark(xid, highest));
                        self.lanes.deleted(&rows);
                    }
                    Err(error) => {
                        self.lanes.not_deleted(rows);
                        self.failed(Kind::Delete, &error);
                    }
                }
            }
            Done::Moved(moves, moved) => {
                self.running.change = false;
                self.single_moves = self.single_moves.saturating_sub(1);
                match moved {
                    Ok(owned) => {
                        self.succeeded(Kind::Move);
                        self.lanes.moved(&moves, &owned);
                    }
                    Err(error) => {
                        if error.kind() != OutboxErrorKind::Database {
                            self.lanes.not_moved(moves);
                        } else if let [refused] = &moves[..] {
                            self.lanes.postpone(refused.clone());
                        } else {
                            self.single_moves = moves.len();
                            self.lanes.not_moved(moves);
                        }
                        self.failed(Kind::Move, &error);
                    }
                }
            }
            Done::Loaded(load, rows) => {
                self.running.load = false;
                let now = self.now();
                match rows {
                    Ok(rows) => {
                        self.succeeded(Kind::Load);
                        self.lanes.loaded(&load, Some(rows), now);
                    }
                    Err(error) => {
                        self.lanes.loaded(&load, None, now);
                        self.failed(Kind::Load, &error);
                    }
                }
            }
            Done::Seen(highest, Ok(view)) => {
                self.running.membership = false;
                self.succeeded(Kind::Heartbeat);
                self.measure();
                view.xid.into_iter().for_each(|xid| self.lanes.mark(xid, highest));
                self.reconcile(&view);
            }
            Done::Lanes(Ok(changed)) => {
                self.running.membership = false;
                self.succeeded(Kind::Lanes);
                changed.released.into_iter().for_each(|at| self.lanes.lose(at));
                let now = self.now();
                let mut parked: HashMap<i16, Vec<ParkedEntry>> = HashMap::new();
                for entry in changed.parked {
                    parked.entry(entry.lane).or_default().push(entry);
                }
                for at in changed.taken {
                    self.lanes.take(at, parked.remove(&at.lane).unwrap_or_default(), now);
                }
            }
            Done::Seen(_, Err(error)) => {
                self.running.membership = false;
                self.heartbeat_at = self.now();
                self.failed(Kind::Heartbeat, &error);
            }
            Done::Lanes(Err(error)) => {
                self.running.membership = false;
                self.failed(Kind::Lanes, &error);
            }
            Done::Notified(notified) => {
                self.running.notify = false;
                match notified {
                    Ok(()) => self.succeeded(Kind::Notify),
                    Err(error) => self.failed(Kind::Notify, &error),
                }
            }
        }
    }

    /// The rate since the last heartbeat.
    fn measure(&mut self) {
        let (now, published) = (self.now(), self.progress.published());
        let (since, before) = std::mem::replace(&mut self.measured, (now, published));
        let seconds = now.saturating_sub(since).as_secs_f64();
        if seconds > 0.0 {
            self.progress.set_rate((published - before) as f64 / seconds);
        }
    }

    /// The next step of a read.
    fn read_on(&mut self, step: ReadStep) {
        if step == ReadStep::End {
            self.succeeded(Kind::Read);
            if std::mem::take(&mut self.needs_reset) {
                self.lanes.reset();
            }
        }
        self.read(step);
    }

    fn succeeded(&mut self, kind: Kind) {
        let now = self.now();
        self.outages[kind as usize].succeeded(now);
    }

    fn failed(&mut self, kind: Kind, error: &OutboxError) {
        let now = self.now();
        let text = text_of(error);
        self.outages[kind as usize].failed(now, &text);
        self.progress.failed(text);
        if error.kind() == OutboxErrorKind::Unavailable {
            // The database may be another one now, with fewer rows and ids that are used again.
            match self.lanes.is_reading() {
                true => self.needs_reset = true,
                false => self.lanes.reset(),
            }
        }
    }

    /// Brings the lanes in line with what the database says, and this relay to its fair share.
    fn reconcile(&mut self, view: &View) {
        self.has_peers = view.live.len() > 1;
        let owned = view.lanes.iter().filter(|(_, owner)| *owner == Some(self.relay));
        let owned: Vec<_> = owned.map(|(at, _)| *at).collect();
        let mine: Vec<_> = self.lanes.owned().collect();
        mine.iter().filter(|at| !owned.contains(at)).for_each(|at| self.lanes.lose(*at));
        if self.is_stopping {
            return;
        }
        let share = fair_share(view.lanes.len(), &view.live, self.relay);
        let surplus = (owned.len() - self.lanes.draining().min(owned.len())).saturating_sub(share);
        self.lanes.drain(surplus);
        // Taken by a statement whose answer was lost.
        let unknown: Vec<_> = owned.iter().copied().filter(|at| !mine.contains(at)).collect();
        let missing = share.saturating_sub(owned.len());
        let owners = view.lanes.iter().filter_map(|(_, owner)| *owner);
        let mut dead: Vec<_> = owners.filter(|owner| !view.live.contains(owner)).collect();
        dead.dedup();
        let has_free = view.lanes.iter().any(|(_, owner)| owner.is_none()) || !dead.is_empty();
        let has_change = !unknown.is_empty() || (missing > 0 && has_free);
        if !has_change || self.waits(Kind::Lanes, self.now()) {
            return;
        }
        self.running.membership = true;
        let store = Arc::clone(&self.store);
        self.statement(async move {
            let change = async {
                let mut taken = unknown;
                if missing > 0 && has_free {
                    taken.extend(store.take(&dead, missing).await?);
                }
                // After the lanes are taken: parked rows change by the hand of the owner only.
                let parked = store.parked(&taken).await?;
                Ok(Changed { taken, parked, released: Vec::new() })
            };
            Done::Lanes(change.await)
        });
    }

    fn start_publishes(&mut self, now: Duration) {
        // What cannot be deleted, or is soon another relay's, would be published twice.
        let is_away = |kind: Kind| self.outages[kind as usize].retry_at().is_some();
        if is_away(Kind::Delete) || is_away(Kind::Heartbeat) || !self.lanes.has_ready() {
            return;
        }
        while let Some(sends) = self.publisher.may_send(now) {
            let Some(publish) = self.lanes.next_publish() else { return };
            let Publish { lane, order, row, table, payload } = publish;
            let publish = Publish { lane, order, row, table, payload: () };
            match payload {
                Ok(message) => {
                    if let Some(answer) = self.publisher.send(publish, message, now) {
                        self.published(answer);
                    }
                }
                Err(reason) => self.lanes.published(&publish, Outcome::Refused(reason), now),
            }
            if sends == Sends::One {
                return;
            }
        }
    }

    fn published(&mut self, answer: Answer) {
        let now = self.now();
        let (publish, outcome) = self.publisher.outcome(answer, now);
        if matches!(outcome, Outcome::Confirmed) {
            self.progress.count_published();
        }
        self.lanes.published(&publish, outcome, now);
    }
}
