//! The loop of a relay: runs the statements and publishes that its lanes ask for.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::MessageBroker;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::effects::{Move, Outcome, Publish, ReadStep};
use super::lane::Capacity;
use super::lanes::Lanes;
use super::membership::{Plan, plan};
use super::moves::Moves;
use super::outage::text_of;
use super::part::Part;
use super::publisher::{Answer, Publisher, Sends};
use super::reads::{ReadCause, ReadTimes};
use super::settings::Settings;
use super::statements::{Bound, Changed, Done, Kind, Statements, take};
use super::status::{Progress, Rate, RelayReport};
use super::store::{Payload, Store, View};
use crate::error::{OutboxError, OutboxErrorKind};

/// Confirmed rows that are deleted at once, and the longest that one waits for others.
const DELETES: usize = 1_000;
const DELETE_AFTER: Duration = Duration::from_millis(20);

/// Lanes whose parked rows are read at once.
const TAKEN: usize = 16;
/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Between two notifications of other processes.
const NOTIFY_AFTER: Duration = Duration::from_millis(10);

pub(super) struct Driver<S> {
    store: Arc<S>,
    relay: Uuid,
    settings: Settings,
    progress: Arc<Progress>,
    lanes: Lanes<Payload>,
    started: Instant,
    publisher: Publisher,
    statements: Statements,
    reads: ReadTimes,
    moves: Moves,
    /// Set if what was read is to be forgotten once the running read ends.
    needs_reset: bool,
    /// Of [`TAKEN`].
    take_part: Part,
    heartbeat_at: Duration,
    delete_at: Option<Duration>,
    notify_at: Duration,
    wants_notify: bool,
    has_peers: bool,
    is_stopping: bool,
    rate: Rate,
}

impl<S: Store> Driver<S> {
    pub(super) fn new(
        store: Arc<S>,
        relay: Uuid,
        broker: Arc<dyn MessageBroker>,
        settings: Settings,
        progress: Arc<Progress>,
    ) -> Self {
        let capacity = Capacity { rows: settings.window, bytes: settings.window_bytes };
        Self {
            store,
            relay,
            progress,
            lanes: Lanes::new(capacity, settings.backoff, settings.longest_transaction),
            publisher: Publisher::new(broker, settings.dead_letters_unroutable),
            started: Instant::now(),
            statements: Statements::new(settings.statement_timeout),
            reads: ReadTimes::new(&settings),
            settings,
            moves: Moves::default(),
            needs_reset: false,
            take_part: Part::default(),
            heartbeat_at: Duration::ZERO,
            delete_at: None,
            notify_at: Duration::ZERO,
            wants_notify: false,
            has_peers: false,
            is_stopping: false,
            rate: Rate::default(),
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
        let mut timer = pin!(tokio::time::sleep_until(self.started));
        loop {
            if !self.is_stopping && (stop.is_cancelled() || self.publisher.is_closed()) {
                self.is_stopping = true;
                self.heartbeat_at = Duration::ZERO;
                deadline = Some(self.now().saturating_add(self.settings.drain));
            }
            if self.is_stopping {
                self.lanes.drain(usize::MAX);
            }
            let now = self.now();
            let has_left = self.lanes.owned().len() == 0 && self.is_settled();
            let is_late = deadline.is_some_and(|deadline| now >= deadline);
            if is_late || self.is_stopping && has_left {
                break;
            }
            self.publisher.observe(now);
            self.start_publishes(now);
            self.start_statements(now);
            self.report();
            let wake_at = self.started + self.wake_at(now, deadline);
            // Set anew only where that is needed: one that ends too early does no harm.
            if timer.is_elapsed() || timer.deadline() > wake_at {
                timer.as_mut().reset(wake_at);
            }
            tokio::select! {
                Some(done) = self.statements.next() => self.done(done),
                answers = self.publisher.answers() => self.answered(answers),
                Ok(()) = written.changed() => {
                    self.lanes.wake();
                    self.wants_notify = true;
                }
                () = notified.notified() => self.lanes.wake(),
                () = stop.cancelled(), if !self.is_stopping => {}
                () = timer.as_mut() => {}
            }
        }
        self.end().await
    }

    /// Leaves. What is in flight may still arrive, and is sent again by the next owner.
    async fn end(self) -> RelayReport {
        let unsettled = self.lanes.in_flight() + self.lanes.pending_deletes();
        let owned: Vec<_> = self.lanes.owned().collect();
        self.statements.leave(&*self.store, &owned).await;
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
        self.progress.set_away(self.statements.is_any_away(), self.publisher.is_away());
        self.progress.set_lanes(self.lanes.owned().len(), self.publisher.in_flight());
    }

    /// The time of the next thing to do. What was due before waits for an answer, and that wakes, too.
    fn wake_at(&self, now: Duration, deadline: Option<Duration>) -> Duration {
        let reading = (!self.is_stopping).then_some(self.reads.next());
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
        let retries = self.statements.retries();
        let future = times.into_iter().flatten().chain(retries).filter(|at| *at > now);
        future.min().unwrap_or(now + HEARTBEAT).min(now + HEARTBEAT)
    }

    fn start<F>(&mut self, kind: Kind, statement: impl FnOnce(Arc<S>, Bound) -> F)
    where
        F: Future<Output = Done> + Send + 'static,
    {
        let statement = statement(Arc::clone(&self.store), self.statements.bound());
        self.statements.start(kind, statement);
    }

    fn start_statements(&mut self, now: Duration) {
        self.start_membership(now);
        self.start_read(now);
        self.start_delete(now);
        self.start_move(now);
        self.start_load(now);
        self.start_notify(now);
    }

    fn start_membership(&mut self, now: Duration) {
        if self.statements.is_running(Kind::Heartbeat) || self.statements.is_running(Kind::Lanes) {
            return;
        }
        let released = self.lanes.drained();
        if !released.is_empty() && self.statements.may_start(Kind::Lanes, now) {
            self.start(Kind::Lanes, |store, bound| async move {
                let done = bound.on(Kind::Lanes, store.release(&released)).await;
                Done::Lanes(done.map(|()| Changed { released, ..Changed::default() }))
            });
        } else if now >= self.heartbeat_at && self.statements.may_start(Kind::Heartbeat, now) {
            self.heartbeat_at = now + HEARTBEAT;
            let highest = self.lanes.highest();
            self.start(Kind::Heartbeat, |store, bound| async move {
                Done::Seen(highest, bound.on(Kind::Heartbeat, store.heartbeat()).await)
            });
        }
    }

    fn start_read(&mut self, now: Duration) {
        if self.is_stopping
            || self.lanes.is_reading()
            || !self.statements.may_start(Kind::Read, now)
        {
            return;
        }
        match self.reads.start(now) {
            ReadCause::Sweep => self.lanes.sweep(),
            ReadCause::Poll => self.lanes.wake(),
            ReadCause::Known => {}
        }
        let step = self.lanes.start_read();
        self.read(step);
    }

    fn read(&mut self, step: ReadStep) {
        match step {
            ReadStep::Hot(reads) => self.start(Kind::Read, |store, bound| async move {
                Done::Hot(bound.on(Kind::Read, store.hot(&reads)).await)
            }),
            ReadStep::Ids(ranges) => self.start(Kind::Read, |store, bound| async move {
                Done::Ids(bound.on(Kind::Read, store.ids(&ranges)).await)
            }),
            ReadStep::Rows(rows) => self.start(Kind::Read, |store, bound| async move {
                Done::Rows(bound.on(Kind::Read, store.rows(&rows)).await)
            }),
            ReadStep::End => self.reads.end(self.started.elapsed()),
        }
    }

    fn start_delete(&mut self, now: Duration) {
        let pending = self.lanes.pending_deletes();
        if pending == 0 || !self.statements.may_start(Kind::Delete, now) {
            return;
        }
        let at = *self.delete_at.get_or_insert(now + DELETE_AFTER);
        if pending < DELETES && now < at && !self.is_stopping {
            return;
        }
        self.delete_at = None;
        let (rows, highest) = (self.lanes.take_deletes(4 * DELETES), self.lanes.highest());
        self.start(Kind::Delete, |store, bound| async move {
            let xid = bound.on(Kind::Delete, store.delete(&rows)).await;
            Done::Deleted(rows, highest, xid)
        });
    }

    fn start_move(&mut self, now: Duration) {
        if !self.statements.may_start(Kind::Move, now) {
            return;
        }
        let moves = self.lanes.take_moves(self.moves.most());
        if moves.is_empty() {
            return;
        }
        self.start(Kind::Move, |store, bound| async move {
            let owned = bound.on(Kind::Move, store.change(&moves)).await;
            Done::Moved(moves, owned)
        });
    }

    fn start_load(&mut self, now: Duration) {
        if !self.statements.may_start(Kind::Load, now) || self.publisher.waits(now) {
            return;
        }
        let Some(load) = self.lanes.next_load(now) else { return };
        self.start(Kind::Load, |store, bound| async move {
            let rows = bound.on(Kind::Load, store.load(&load)).await;
            Done::Loaded(load, rows)
        });
    }

    fn start_notify(&mut self, now: Duration) {
        let is_due = self.wants_notify && self.has_peers && now >= self.notify_at;
        if !is_due || !self.statements.may_start(Kind::Notify, now) {
            return;
        }
        self.wants_notify = false;
        self.notify_at = now + NOTIFY_AFTER;
        self.start(Kind::Notify, |store, bound| async move {
            Done::Notified(bound.on(Kind::Notify, store.notify()).await)
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Hot(Ok(answer)) => {
                self.reads.found(answer.rows.len());
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
                match error.is_timeout() && !std::mem::take(&mut self.needs_reset) {
                    true => self.lanes.read_timed_out(),
                    false => self.lanes.reset(),
                }
                self.failed(Kind::Read, &error);
            }
            Done::Deleted(rows, highest, Ok(xid)) => {
                self.succeeded(Kind::Delete);
                xid.into_iter().for_each(|xid| self.lanes.mark(xid, highest));
                self.lanes.deleted(&rows);
            }
            Done::Deleted(rows, _, Err(error)) => {
                self.lanes.not_deleted(rows);
                self.failed(Kind::Delete, &error);
            }
            Done::Moved(moves, moved) => self.moved(moves, moved),
            Done::Loaded(load, Ok(rows)) => {
                self.succeeded(Kind::Load);
                self.lanes.loaded(&load, Some(rows), self.now());
            }
            Done::Loaded(load, Err(error)) => {
                self.lanes.loaded(&load, None, self.now());
                self.failed(Kind::Load, &error);
            }
            Done::Seen(highest, Ok(view)) => {
                self.succeeded(Kind::Heartbeat);
                self.rate.measure(self.now(), &self.progress);
                view.xid.into_iter().for_each(|xid| self.lanes.mark(xid, highest));
                self.reconcile(&view);
            }
            Done::Seen(_, Err(error)) => {
                self.heartbeat_at = self.now();
                self.failed(Kind::Heartbeat, &error);
            }
            Done::Lanes(Ok(changed)) => {
                self.succeeded(Kind::Lanes);
                self.changed(changed);
            }
            Done::Lanes(Err(error)) => {
                if error.is_timeout() {
                    self.take_part.timed_out();
                }
                self.failed(Kind::Lanes, &error);
            }
            Done::Notified(Ok(())) => self.succeeded(Kind::Notify),
            Done::Notified(Err(error)) => self.failed(Kind::Notify, &error),
        }
    }

    fn moved(&mut self, moves: Vec<Move>, moved: Result<Vec<i16>, OutboxError>) {
        match moved {
            Ok(owned) => {
                if self.moves.moved(&moves) {
                    self.succeeded(Kind::Move);
                }
                self.lanes.moved(&moves, &owned);
            }
            Err(error) => {
                self.moves.failed(moves, &error, &mut self.lanes);
                self.failed(Kind::Move, &error);
            }
        }
    }

    fn changed(&mut self, changed: Changed) {
        if !changed.taken.is_empty() {
            self.take_part.succeeded();
        }
        if changed.is_partial {
            self.heartbeat_at = self.now();
        }
        changed.released.into_iter().for_each(|at| self.lanes.lose(at));
        self.lanes.take(changed.taken, changed.parked, self.now());
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
        self.statements.succeeded(kind, now);
    }

    fn failed(&mut self, kind: Kind, error: &OutboxError) {
        let now = self.now();
        let text = text_of(error);
        self.statements.failed(kind, now, &text);
        self.progress.failed(text);
        if error.kind() == OutboxErrorKind::Unavailable {
            self.store.forget_connections();
            // The database may be another one now, with fewer rows and ids that are used again.
            match self.lanes.is_reading() {
                _ if error.is_timeout() => {}
                true => self.needs_reset = true,
                false => self.lanes.reset(),
            }
        }
    }

    /// Brings the lanes in line with what the database says, and this relay to its fair share.
    fn reconcile(&mut self, view: &View) {
        self.has_peers = view.live.len() > 1;
        let mine: Vec<_> = self.lanes.owned().collect();
        let plan = plan(view, self.relay, &mine, self.lanes.draining());
        plan.lost.iter().for_each(|at| self.lanes.lose(*at));
        if self.is_stopping {
            return;
        }
        self.lanes.drain(plan.surplus);
        if plan.takes() && self.statements.may_start(Kind::Lanes, self.now()) {
            self.take_lanes(plan);
        }
    }

    fn take_lanes(&mut self, plan: Plan) {
        let most = self.take_part.of(TAKEN);
        self.start(Kind::Lanes, |store, bound| async move {
            Done::Lanes(take(&*store, bound, plan, most).await)
        });
    }

    fn start_publishes(&mut self, now: Duration) {
        // What cannot be deleted, or is soon another relay's, would be published twice.
        let is_away = |kind| self.statements.is_away(kind);
        if is_away(Kind::Delete) || is_away(Kind::Heartbeat) || !self.lanes.has_ready() {
            return;
        }
        let Some(sends) = self.publisher.may_send(now) else { return };
        while let Some(publish) = self.lanes.next_publish() {
            let Publish { lane, order, row, table, payload } = publish;
            let publish = Publish { lane, order, row, table, payload: () };
            match payload {
                Ok(message) => {
                    if let Some(answer) = self.publisher.send(publish, message, now) {
                        self.published(answer, now);
                    }
                }
                Err(reason) => self.lanes.published(&publish, Outcome::Refused(reason), now),
            }
            if sends == Sends::One || self.publisher.is_held(now) {
                return;
            }
        }
    }

    fn answered(&mut self, answers: Vec<Answer>) {
        let now = self.now();
        self.publisher.answered(now);
        answers.into_iter().for_each(|answer| self.published(answer, now));
    }

    fn published(&mut self, answer: Answer, now: Duration) {
        let (publish, outcome) = self.publisher.outcome(answer, now);
        if matches!(outcome, Outcome::Confirmed) {
            self.progress.count_published();
        }
        self.lanes.published(&publish, outcome, now);
    }
}

#[cfg(test)]
mod tests;
