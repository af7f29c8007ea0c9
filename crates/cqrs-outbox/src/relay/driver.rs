//! The loop of a relay: runs the statements and publishes that its lanes ask for.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, Confirmation, Receipt};
use cqrs_core::{Message, MessageBroker, PublishError, PublishErrorKind};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::RelayReport;
use super::effects::{LaneEpoch, Move, RowId, Table};
use super::lane::ParkedEntry;
use super::lanes::{Lanes, Load, Outcome, Publish, ReadAnswer, ReadStep};
use super::outage::Outage;
use super::settings::Settings;
use super::share::fair_share;
use super::status::Progress;
use super::store::{Payload, ReadEntry, Store, View};
use crate::error::OutboxError;

/// Confirmed rows that are deleted at once, and the longest that one waits for others.
const DELETES: usize = 1_000;
const DELETE_AFTER: Duration = Duration::from_millis(20);

/// Rows that one statement parks or declares dead.
const MOVES: usize = 500;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Between two notifications of other processes.
const NOTIFY_AFTER: Duration = Duration::from_millis(10);

/// While the broker is away, one row is tried after so long, whatever its state says.
const PROBE: Duration = Duration::from_secs(5);

/// The longest pauses between two tries, while the database or the broker is away. The state of the broker
/// is known without asking it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const BROKER_PAUSE: Duration = Duration::from_millis(500);

/// The last error of a row is cut to so many bytes.
const MAX_ERROR: usize = 1_024;

/// A row in flight.
struct Flight {
    publish: Option<Publish<()>>,
    receipt: Receipt,
}

impl Future for Flight {
    type Output = (Publish<()>, Result<Confirmation, PublishError>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.receipt).poll(cx) {
            Poll::Ready(outcome) => match self.publish.take() {
                Some(publish) => Poll::Ready((publish, outcome)),
                None => Poll::Pending,
            },
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A statement that is through.
enum Done {
    Hot(Result<ReadAnswer<ReadEntry>, OutboxError>),
    Ids(Result<ReadAnswer<i64>, OutboxError>),
    Rows(Result<ReadAnswer<ReadEntry>, OutboxError>),
    Deleted(Vec<(RowId, Table)>, i64, Result<Option<u64>, OutboxError>),
    Moved(Vec<Move>, Result<Vec<i16>, OutboxError>),
    Loaded(Load, Result<HashMap<i64, Payload>, OutboxError>),
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
    pub(super) broker: Arc<dyn MessageBroker>,
    pub(super) settings: Settings,
    pub(super) progress: Arc<Progress>,
    lanes: Lanes<Payload>,
    started: Instant,
    flights: FuturesUnordered<Flight>,
    enqueueing: Option<BoxFuture<'static, (Publish<()>, Result<Receipt, PublishError>)>>,
    statements: FuturesUnordered<BoxFuture<'static, Done>>,
    running: Running,
    database: Outage,
    broker_outage: Outage,
    /// While the broker is away: the next try without regard to its state.
    probe_at: Duration,
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
    is_broker_closed: bool,
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
        let sweep_at = settings.sweep;
        Self {
            store,
            relay,
            broker,
            settings,
            progress,
            lanes,
            started: Instant::now(),
            flights: FuturesUnordered::new(),
            enqueueing: None,
            statements: FuturesUnordered::new(),
            running: Running::default(),
            database: Outage::new("database", LONGEST_PAUSE),
            broker_outage: Outage::new("broker", BROKER_PAUSE),
            probe_at: Duration::ZERO,
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
            is_broker_closed: false,
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
            if !self.is_stopping && (stop.is_cancelled() || self.is_broker_closed) {
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
            self.start_statements(now);
            self.start_publishes(now);
            self.report();
            let wake_at = self.wake_at(now, deadline);
            tokio::select! {
                Some(done) = self.statements.next() => self.done(done),
                Some((publish, outcome)) = self.flights.next() => {
                    self.published(publish, outcome);
                    // Most confirms come in batches.
                    while let Some(Some((publish, outcome))) = self.flights.next().now_or_never() {
                        self.published(publish, outcome);
                    }
                }
                (publish, enqueued) = pending(&mut self.enqueueing) => {
                    self.enqueueing = None;
                    self.enqueued(publish, enqueued);
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
        // The statements that run are not cut off.
        let leave = async {
            while self.statements.next().await.is_some() {}
            let owned: Vec<_> = self.lanes.owned().collect();
            if !owned.is_empty() {
                self.store.release(&owned).await?;
            }
            self.store.leave().await
        };
        match tokio::time::timeout(HEARTBEAT, leave).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the relay of the outbox ends without a goodbye")
            }
            Err(_late) => tracing::warn!("the relay of the outbox ends while its database is away"),
        }
        RelayReport {
            published: self.progress.published(),
            unsettled,
            is_broker_closed: self.is_broker_closed,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_settled(&self) -> bool {
        self.statements.is_empty()
            && self.flights.is_empty()
            && self.enqueueing.is_none()
            && self.lanes.pending_deletes() == 0
    }

    fn report(&self) {
        let database_waits = self.database.retry_at().is_some();
        self.progress.set_away(database_waits, self.broker_outage.retry_at().is_some());
        self.progress.set_lanes(self.lanes.owned().len(), self.flights.len());
    }

    fn wake_at(&self, now: Duration, deadline: Option<Duration>) -> Duration {
        let mut at = now + HEARTBEAT;
        let mut until = |time: Duration| at = at.min(time);
        if !self.running.membership {
            until(self.heartbeat_at);
        }
        if !self.lanes.is_reading() && !self.is_stopping {
            until(self.poll_at.min(self.sweep_at));
        }
        if !self.running.delete {
            self.delete_at.into_iter().for_each(&mut until);
        }
        deadline.into_iter().for_each(&mut until);
        if self.wants_notify && self.has_peers {
            until(self.notify_at);
        }
        if !self.running.load {
            self.lanes.next_due().into_iter().for_each(&mut until);
        }
        if let Some(retry) = self.database.retry_at() {
            // Nothing else can be done before.
            return retry.max(now + Duration::from_millis(1)).min(deadline.unwrap_or(retry));
        }
        self.broker_outage.retry_at().into_iter().for_each(&mut until);
        at.max(now + Duration::from_millis(1))
    }

    fn statement(&mut self, done: impl Future<Output = Done> + Send + 'static) {
        self.statements.push(Box::pin(done));
    }

    fn start_statements(&mut self, now: Duration) {
        if self.database.waits(now) {
            return;
        }
        self.start_membership(now);
        self.start_read(now);
        self.start_delete(now);
        if !self.running.change {
            let moves = self.lanes.take_moves(MOVES);
            if !moves.is_empty() {
                self.running.change = true;
                let store = Arc::clone(&self.store);
                self.statement(async move {
                    let owned = store.change(&moves).await;
                    Done::Moved(moves, owned)
                });
            }
        }
        let may_load = !self.running.load && self.broker_outage.retry_at().is_none();
        if let Some(load) = may_load.then(|| self.lanes.next_load(now)).flatten() {
            self.running.load = true;
            let store = Arc::clone(&self.store);
            self.statement(async move {
                let rows = store.load(&load).await;
                Done::Loaded(load, rows)
            });
        }
        if self.wants_notify && !self.running.notify && self.has_peers && now >= self.notify_at {
            (self.wants_notify, self.running.notify) = (false, true);
            self.notify_at = now + NOTIFY_AFTER;
            let store = Arc::clone(&self.store);
            self.statement(async move { Done::Notified(store.notify().await) });
        }
    }

    fn start_membership(&mut self, now: Duration) {
        let has_drained = !self.lanes.drained().is_empty();
        if self.running.membership || !(has_drained || now >= self.heartbeat_at) {
            return;
        }
        self.running.membership = true;
        self.heartbeat_at = now + HEARTBEAT;
        let store = Arc::clone(&self.store);
        let released = self.lanes.drained();
        if has_drained {
            self.statement(async move {
                let done = store.release(&released).await;
                let (taken, parked) = (Vec::new(), Vec::new());
                Done::Lanes(done.map(|()| Changed { taken, parked, released }))
            });
            return;
        }
        let highest = self.lanes.highest();
        self.statement(async move { Done::Seen(highest, store.heartbeat().await) });
    }

    fn start_read(&mut self, now: Duration) {
        if self.is_stopping || self.lanes.is_reading() {
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
        if self.running.delete || pending == 0 {
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
                self.succeeded();
                self.empty_reads = if answer.rows.is_empty() { self.empty_reads + 1 } else { 0 };
                let step = self.lanes.hot_rows(answer);
                self.read(step);
            }
            Done::Ids(Ok(answer)) => {
                let step = self.lanes.late_ids(answer);
                self.read(step);
            }
            Done::Rows(Ok(answer)) => {
                self.progress.count_late(answer.rows.len());
                let step = self.lanes.late_rows(answer);
                self.read(step);
            }
            Done::Hot(Err(error)) | Done::Ids(Err(error)) | Done::Rows(Err(error)) => {
                self.lanes.reset();
                self.failed(&error);
            }
            Done::Deleted(rows, highest, deleted) => {
                self.running.delete = false;
                match deleted {
                    Ok(xid) => {
                        self.succeeded();
                        xid.into_iter().for_each(|xid| self.lanes.mark(xid, highest));
                        self.lanes.deleted(&rows);
                    }
                    Err(error) => {
                        self.lanes.not_deleted(rows);
                        self.failed(&error);
                    }
                }
            }
            Done::Moved(moves, moved) => {
                self.running.change = false;
                match moved {
                    Ok(owned) => self.lanes.moved(&moves, &owned),
                    Err(error) => {
                        self.lanes.not_moved(moves);
                        self.failed(&error);
                    }
                }
            }
            Done::Loaded(load, rows) => {
                self.running.load = false;
                let now = self.now();
                match rows {
                    Ok(rows) => self.lanes.loaded(&load, Some(rows), now),
                    Err(error) => {
                        self.lanes.loaded(&load, None, now);
                        self.failed(&error);
                    }
                }
            }
            Done::Seen(highest, Ok(view)) => {
                self.running.membership = false;
                self.succeeded();
                self.measure();
                view.xid.into_iter().for_each(|xid| self.lanes.mark(xid, highest));
                self.reconcile(&view);
            }
            Done::Lanes(Ok(changed)) => {
                self.running.membership = false;
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
            Done::Seen(_, Err(error)) | Done::Lanes(Err(error)) => {
                self.running.membership = false;
                self.heartbeat_at = self.now();
                self.failed(&error);
            }
            Done::Notified(notified) => {
                self.running.notify = false;
                if let Err(error) = notified {
                    self.failed(&error);
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

    fn succeeded(&mut self) {
        let now = self.now();
        self.database.succeeded(now);
    }

    fn failed(&mut self, error: &OutboxError) {
        let now = self.now();
        self.database.failed(now, text_of(error));
        self.progress.failed(text_of(error));
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
        if unknown.is_empty() && (missing == 0 || !has_free) {
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
        if self.enqueueing.is_some() || self.database.retry_at().is_some() || self.is_broker_closed
        {
            return;
        }
        if self.broker_outage.waits(now) || !self.lanes.has_ready() {
            return;
        }
        if !self.broker.state().is_ready() && now < self.probe_at {
            self.broker_outage.failed(now, format_args!("{:?}", self.broker.state()));
            return;
        }
        let is_probe = !self.broker.state().is_ready();
        self.probe_at = now + PROBE;
        while let Some(publish) = self.lanes.next_publish() {
            let Publish { lane, order, id, table, payload } = publish;
            let publish = Publish { lane, order, id, table, payload: () };
            let message = match payload {
                Ok(message) => message,
                Err(reason) => {
                    self.lanes.published(&publish, Outcome::Refused(reason), now);
                    continue;
                }
            };
            match self.broker.try_enqueue(message) {
                Ok(receipt) => self.flights.push(Flight { publish: Some(publish), receipt }),
                Err(error) if error.kind() == PublishErrorKind::Full => {
                    let broker = Arc::clone(&self.broker);
                    let message = error.into_message();
                    self.enqueueing = Some(Box::pin(async move {
                        let receipt = broker.enqueue(message).await;
                        (publish, receipt)
                    }));
                    return;
                }
                Err(error) => self.published(publish, Err(error)),
            }
            if is_probe || self.broker_outage.waits(now) {
                return;
            }
        }
    }

    fn enqueued(&mut self, publish: Publish<()>, enqueued: Result<Receipt, PublishError>) {
        match enqueued {
            Ok(receipt) => self.flights.push(Flight { publish: Some(publish), receipt }),
            Err(error) => self.published(publish, Err(error)),
        }
    }

    fn published(&mut self, publish: Publish<()>, result: Result<Confirmation, PublishError>) {
        let now = self.now();
        let outcome = match result {
            Ok(_) => {
                self.broker_outage.succeeded(now);
                self.progress.count_published();
                Outcome::Confirmed
            }
            Err(error) => self.outcome(error, now),
        };
        self.lanes.published(&publish, outcome, now);
    }

    /// What to do with a message that was not confirmed.
    fn outcome(&mut self, error: PublishError, now: Duration) -> Outcome<Payload> {
        let is_away = !self.broker.state().is_ready();
        match error.kind() {
            PublishErrorKind::Closed => {
                self.is_broker_closed = true;
                Outcome::Returned(Ok(error.into_message()))
            }
            // Not sent at all: this says nothing about the message.
            PublishErrorKind::Full | PublishErrorKind::NotSent => self.returned(error, now),
            PublishErrorKind::Refused | PublishErrorKind::Unknown if is_away => {
                self.returned(error, now)
            }
            PublishErrorKind::Unroutable if self.settings.parks_unroutable => {
                Outcome::Failed(text_of(&error))
            }
            kind if kind.is_retryable() => Outcome::Failed(text_of(&error)),
            _ => {
                let text = text_of(&error);
                tracing::error!(error = %text, "an event of the outbox is refused for good");
                Outcome::Refused(text)
            }
        }
    }

    fn returned(&mut self, error: PublishError, now: Duration) -> Outcome<Payload> {
        if !self.broker_outage.waits(now) {
            self.broker_outage.failed(now, text_of(&error));
        }
        Outcome::Returned(Ok::<Message, _>(error.into_message()))
    }
}

/// The future in the slot, or none.
async fn pending<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The error with its causes, cut to what a row keeps. It has no payload in it, and no zero byte, which
/// PostgreSQL refuses in a text.
fn text_of(error: &dyn std::error::Error) -> Arc<str> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    let mut end = text.len().min(MAX_ERROR);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', " ").into()
}
