//! The loop of the relay of python-cqrs's outbox table: reads a batch, publishes it, and sets its statuses.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::message::{Headers, content_type, header};
use cqrs_core::{Message, MessageBroker, PublishErrorKind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::store::{Batch, Failed, Read, Settlement, Store, StoredRow};
use super::unroutable::Unroutable;
use super::{MAX_ATTEMPTS, Settings};
use crate::error::OutboxError;
use crate::python::restore;
use crate::relay::RelayReport;
use crate::relay::effects::{LaneEpoch, OrderKey, Outcome, Publish, RowId, Table};
use crate::relay::outage::{Outage, text_of};
use crate::relay::publisher::{Answer, Publisher, Sends};
use crate::relay::status::{Progress, Rate};

/// Failed rows whose next attempt is remembered. Further ones are tried once there is room.
const MAX_WAITING: usize = 8_192;

/// Topics without a destination that are remembered. A failure of a row of a further one counts.
const MAX_UNROUTABLE: usize = 1_024;

/// Looks without a row after which the relay is idle.
const EMPTY_READS: u32 = 8;

/// The longest pause between two tries, while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest that a relay takes to set statuses at its end, and the longest that it overruns its drain.
const LEAVE: Duration = Duration::from_secs(5);

/// The time over which the rate is measured.
const RATE_TIME: Duration = Duration::from_secs(1);

/// Times are since the start of the relay.
pub(super) struct Driver {
    store: Arc<Store>,
    settings: Settings,
    publisher: Publisher,
    started: Instant,
    reading: Outage,
    settling: Outage,
    /// Failed rows, and the time of their next attempt.
    waiting: HashMap<i64, Duration>,
    /// Topics without a destination, and the times of their next attempts.
    unroutable: Unroutable,
    /// Of the batch that is published, or of one whose transaction is gone.
    unsettled: Settlement,
    progress: Arc<Progress>,
    rate: Rate,
    /// Set if the last look at the table had rows.
    is_draining: bool,
    empty_reads: u32,
}

impl Driver {
    pub(super) fn new(
        store: Store,
        broker: Arc<dyn MessageBroker>,
        settings: Settings,
        progress: Arc<Progress>,
    ) -> Self {
        let backoff = settings.backoff;
        Self {
            store: Arc::new(store),
            settings,
            // No row is refused at once: each failure counts as one attempt.
            publisher: Publisher::new(broker, false),
            started: Instant::now(),
            reading: Outage::new("reading python-cqrs's outbox", LONGEST_PAUSE),
            settling: Outage::new("setting statuses in python-cqrs's outbox", LONGEST_PAUSE),
            waiting: HashMap::new(),
            unroutable: Unroutable::new(backoff, MAX_UNROUTABLE),
            unsettled: Settlement::default(),
            progress,
            rate: Rate::default(),
            is_draining: false,
            empty_reads: 0,
        }
    }

    /// Runs until `stop`, and then until all in flight is settled, at most for the drain and [`LEAVE`].
    pub(super) async fn run(mut self, stop: CancellationToken) -> RelayReport {
        let longest = self.settings.drain.saturating_add(LEAVE);
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(longest).await;
        };
        let has_left = tokio::select! {
            has_left = self.rounds(&stop) => has_left,
            () = late => false,
        };
        if !has_left {
            tracing::warn!("the relay of python-cqrs's outbox ends while its database is away");
        }
        RelayReport {
            published: self.progress.published(),
            unsettled: self.unsettled.len() + self.publisher.in_flight(),
            is_broker_closed: self.publisher.is_closed(),
        }
    }

    /// Returns `false` if the database does not answer at the end.
    async fn rounds(&mut self, stop: &CancellationToken) -> bool {
        while !stop.is_cancelled() && !self.publisher.is_closed() {
            let pause = self.round(stop).await;
            self.tell(self.now());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        let leave = async {
            if self.unsettled.len() > 0 && self.store.settle_again(&self.unsettled).await.is_ok() {
                self.unsettled = Settlement::default();
            }
            self.store.close().await;
        };
        tokio::time::timeout(LEAVE, leave).await.is_ok()
    }

    /// One batch. Returns the pause until the next one.
    async fn round(&mut self, stop: &CancellationToken) -> Duration {
        let now = self.now();
        let retries = [self.reading.retry_at(), self.settling.retry_at()];
        if let Some(retry) = retries.into_iter().flatten().max().filter(|retry| *retry > now) {
            return retry - now;
        }
        if self.unsettled.len() > 0 {
            let settled = self.store.settle_again(&self.unsettled).await;
            self.settled(settled);
            return Duration::ZERO;
        }
        self.publisher.observe(now);
        let Some(sends) = self.publisher.may_send(now) else {
            let wake_at = self.publisher.wake_at(now);
            return wake_at.map_or(self.settings.poll, |at| at - now);
        };
        let limit = if sends == Sends::One { 1 } else { self.settings.batch };
        let failed = self.failed_to_read(now);
        let unroutable = self.unroutable.waiting(now);
        let store = Arc::clone(&self.store);
        let read_at = now;
        let read = tokio::select! {
            read = store.read(limit, failed, &unroutable) => read,
            () = stop.cancelled() => return Duration::ZERO,
        };
        let now = self.now();
        self.is_draining = matches!(read, Ok(Read::Rows(_)));
        let mut batch = match read {
            Ok(read) => {
                self.reading.succeeded(now);
                match read {
                    Read::Rows(batch) => batch,
                    Read::NoRows => return self.pause(),
                    Read::Standby => return self.settings.idle_poll,
                }
            }
            Err(error) => {
                let error = text_of(&error);
                self.progress.failed(Arc::clone(&error));
                self.reading.failed(now, error);
                return Duration::ZERO;
            }
        };
        self.empty_reads = 0;
        let is_full = batch.is_full;
        let lost = self.publish(&store, &mut batch, sends, read_at, stop).await;
        let settled = match lost {
            None => store.settle(batch, &self.unsettled).await,
            Some(error) => Err(error),
        };
        self.settled(settled);
        if is_full { Duration::ZERO } else { self.settings.poll }
    }

    /// Tells the handle what this relay does.
    fn tell(&mut self, now: Duration) {
        let is_away = [&self.reading, &self.settling].iter().any(|of| of.retry_at().is_some());
        self.progress.set_away(is_away, self.publisher.is_away());
        self.progress.set_lanes(usize::from(self.is_draining), self.publisher.in_flight());
        if self.rate.age(now) >= RATE_TIME {
            self.rate.measure(now, &self.progress);
        }
    }

    /// After a look without a row.
    fn pause(&mut self) -> Duration {
        self.empty_reads = self.empty_reads.saturating_add(1);
        let is_idle = self.empty_reads > EMPTY_READS;
        if is_idle { self.settings.idle_poll } else { self.settings.poll }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Forgets the rows that are due, and returns those that are to be left out.
    fn failed_to_read(&mut self, now: Duration) -> Failed {
        self.waiting.retain(|_, due| *due > now);
        match self.waiting.len() < MAX_WAITING {
            true => Failed::Except(self.waiting.keys().copied().collect()),
            false => Failed::None,
        }
    }

    fn settled(&mut self, settled: Result<(), OutboxError>) {
        let now = self.now();
        match settled {
            Ok(()) => {
                self.settling.succeeded(now);
                self.unsettled = Settlement::default();
            }
            Err(error) => {
                let error = text_of(&error);
                self.progress.failed(Arc::clone(&error));
                self.settling.failed(now, error);
            }
        }
    }

    /// Publishes the rows of a batch. Ends before all are tried if the relay stops, the broker is away, the lock is lost
    /// or the batch is one lease old; then nothing is counted for the others. Returns the error of a transaction that
    /// is gone.
    async fn publish(
        &mut self,
        store: &Store,
        batch: &mut Batch<'_>,
        first: Sends,
        read_at: Duration,
        stop: &CancellationToken,
    ) -> Option<OutboxError> {
        let mut queue: VecDeque<_> = std::mem::take(&mut batch.rows).into();
        let tried = queue.iter().map(|row| (row.id, (row.attempts, row.topic.clone()))).collect();
        let lease = self.settings.lease;
        let (mut permit, mut lost, mut deadline) = (Some(first), None, None);
        let end_at = self.now().saturating_add(lease);
        // The session is alive for the lease after the start of the last statement that succeeded.
        let mut alive_at = read_at;
        loop {
            let now = self.now();
            let ask_at = alive_at.saturating_add(lease / 3);
            if lost.is_none() && now >= ask_at {
                alive_at = now;
                lost = store.keep_alive(batch).await.err();
            }
            let now = self.now();
            if stop.is_cancelled() || self.publisher.is_closed() {
                queue.clear();
                deadline.get_or_insert(now.saturating_add(self.settings.drain));
            }
            if lost.is_some() || now >= end_at {
                queue.clear();
                self.publisher.cancel_enqueueing();
            }
            self.publisher.observe(now);
            let end_of_lock = alive_at.saturating_add(lease / 3 * 2);
            self.start(&mut queue, &mut permit, &tried, end_of_lock);
            self.tell(now);
            let is_late = deadline.is_some_and(|deadline| now >= deadline);
            if self.publisher.is_idle() || is_late {
                return lost;
            }
            let ask_at = lost.is_none().then(|| alive_at.saturating_add(lease / 3));
            let wake_at = [self.publisher.wake_at(now), deadline, ask_at, Some(end_at)];
            let wake_at = wake_at.into_iter().flatten().filter(|at| *at > now).min();
            let pause = wake_at.map_or(self.settings.poll, |at| at - now);
            tokio::select! {
                answers = self.publisher.answers() => {
                    answers.into_iter().for_each(|answer| self.answered(answer, &tried));
                }
                () = stop.cancelled(), if deadline.is_none() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Starts as many publishes as the broker takes, until the lock may be gone.
    fn start(
        &mut self,
        queue: &mut VecDeque<StoredRow>,
        permit: &mut Option<Sends>,
        tried: &Tried,
        end_of_lock: Duration,
    ) {
        while let Some(row) = queue.front() {
            // This process may have been suspended at any time.
            let now = self.now();
            if now >= end_of_lock {
                return;
            }
            if self.unroutable.waits(&row.topic, now) {
                queue.pop_front();
                continue;
            }
            let Some(sends) = permit.take().or_else(|| self.publisher.may_send(now)) else {
                return;
            };
            let Some(row) = queue.pop_front() else { return };
            let id = row.id;
            let of = RowId { id, event_id: row.event_id };
            match self.message_of(row) {
                Ok(message) => {
                    let (lane, order) = (LaneEpoch { lane: 0, epoch: 0 }, OrderKey::Row(of));
                    let publish =
                        Publish { lane, order, row: of, table: Table::Pending, payload: () };
                    if let Some(answer) = self.publisher.send(publish, message, now) {
                        self.answered(answer, tried);
                    }
                }
                Err(reason) => self.failed(id, tried, reason),
            }
            if sends == Sends::One {
                return;
            }
        }
    }

    fn answered(&mut self, answer: Answer, tried: &Tried) {
        let error = answer.1.as_ref().err();
        let is_unroutable = error.is_some_and(|error| error.kind() == PublishErrorKind::Unroutable);
        let now = self.now();
        self.publisher.answered(now);
        let (Publish { row: RowId { id, .. }, .. }, outcome) = self.publisher.outcome(answer, now);
        match outcome {
            Outcome::Confirmed => {
                self.progress.count_published();
                self.unsettled.confirmed.push(id);
                if let Some((_, topic)) = tried.get(&id) {
                    self.unroutable.routed(topic);
                }
            }
            Outcome::Returned(_) => {}
            Outcome::Failed(error) | Outcome::Refused(error) => {
                let topic = tried.get(&id).map(|(_, topic)| topic);
                if let Some(topic) = topic.filter(|_| is_unroutable)
                    && self.unroutable.failed(topic, &error, now)
                {
                    return;
                }
                self.failed(id, tried, error);
            }
        }
    }

    /// Counts a failed attempt.
    fn failed(&mut self, id: i64, tried: &Tried, error: impl Display) {
        let before = tried.get(&id).map_or(0, |(attempts, _)| *attempts);
        self.unsettled.failed.push((id, before));
        let attempts = before.saturating_add(1);
        if attempts >= MAX_ATTEMPTS {
            tracing::error!(id, %error, "a row of python-cqrs's outbox has no attempt left");
        } else if self.waiting.len() < MAX_WAITING {
            let pause = self.settings.backoff.after(u32::from(attempts.unsigned_abs()));
            self.waiting.insert(id, self.now().saturating_add(pause));
        }
    }

    /// The message that the package sends, or the reason why there is none. Its time is the present, as there.
    fn message_of(&self, row: StoredRow) -> Result<Message, String> {
        let StoredRow { event_id, name, topic, payload, .. } = row;
        let body = restore(payload, self.settings.compression)?;
        let is_protobuf = self.settings.protobuf.contains(&name);
        let message = Message::new(topic, body).with_id(event_id);
        if !is_protobuf {
            return Ok(message.with_name(name));
        }
        let id = event_id.hyphenated().to_string();
        let headers = Headers::from_pairs([
            (header::EVENT_NAME.into(), name.clone().into()),
            (header::MESSAGE_ID.into(), id.into()),
        ]);
        let message = message.with_content_type(content_type::PROTOBUF).with_headers(headers);
        Ok(message.with_name(name))
    }
}

/// The counters that were read and the topics of the rows of a batch, by id.
type Tried = HashMap<i64, (i16, Arc<str>)>;
