//! The loop of the relay of python-cqrs's outbox table: reads a batch, publishes it, and sets its statuses.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::message::{Headers, content_type, header};
use cqrs_core::{Message, MessageBroker};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::store::{Batch, Failed, Read, Settlement, Store, StoredRow};
use super::{MAX_ATTEMPTS, Settings};
use crate::error::OutboxError;
use crate::python::restore;
use crate::relay::RelayReport;
use crate::relay::effects::{LaneEpoch, OrderKey, Outcome, Publish, RowId, Table};
use crate::relay::outage::{Outage, text_of};
use crate::relay::publisher::{Answer, Publisher, Sends};

/// Failed rows whose next attempt is remembered. Further ones are tried once there is room.
const MAX_WAITING: usize = 8_192;

/// Looks without a row after which the relay is idle.
const EMPTY_READS: u32 = 8;

/// The longest pause between two tries, while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest that a relay takes to set statuses at its end.
const LEAVE: Duration = Duration::from_secs(5);

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
    /// Of a batch whose transaction is gone.
    unsettled: Settlement,
    published: u64,
    empty_reads: u32,
}

impl Driver {
    pub(super) fn new(store: Store, broker: Arc<dyn MessageBroker>, settings: Settings) -> Self {
        Self {
            store: Arc::new(store),
            settings,
            // No row is refused at once: each failure counts as one attempt.
            publisher: Publisher::new(broker, false),
            started: Instant::now(),
            reading: Outage::new("reading python-cqrs's outbox", LONGEST_PAUSE),
            settling: Outage::new("setting statuses in python-cqrs's outbox", LONGEST_PAUSE),
            waiting: HashMap::new(),
            unsettled: Settlement::default(),
            published: 0,
            empty_reads: 0,
        }
    }

    /// Runs until `stop`, and then until all in flight is settled, at most for the drain.
    pub(super) async fn run(mut self, stop: CancellationToken) -> RelayReport {
        while !stop.is_cancelled() && !self.publisher.is_closed() {
            let pause = self.round(&stop).await;
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
        if tokio::time::timeout(LEAVE, leave).await.is_err() {
            tracing::warn!("the relay of python-cqrs's outbox ends while its database is away");
        }
        RelayReport {
            published: self.published,
            unsettled: self.unsettled.len() + self.publisher.in_flight(),
            is_broker_closed: self.publisher.is_closed(),
        }
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
            let wake_at = self.publisher.wake_at(now).unwrap_or(now + self.settings.poll);
            return wake_at - now;
        };
        let limit = if sends == Sends::One { 1 } else { self.settings.batch };
        let failed = self.failed_to_read(now);
        let store = Arc::clone(&self.store);
        let read = tokio::select! {
            read = store.read(limit, failed) => read,
            () = stop.cancelled() => return Duration::ZERO,
        };
        let now = self.now();
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
                self.reading.failed(now, text_of(&error));
                return Duration::ZERO;
            }
        };
        self.empty_reads = 0;
        let is_full = batch.rows.len() >= limit;
        let (settlement, lost) = self.publish(&store, &mut batch, sends, stop).await;
        let settled = match lost {
            None => store.settle(batch, &settlement).await,
            Some(error) => Err(error),
        };
        self.unsettled = settlement;
        self.settled(settled);
        if is_full { Duration::ZERO } else { self.settings.poll }
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
            Err(error) => self.settling.failed(now, text_of(&error)),
        }
    }

    /// Publishes the rows of a batch. Ends before all are tried if the relay stops or the broker is away; then nothing
    /// is counted for the others. Also returns the error of a transaction that is gone.
    async fn publish(
        &mut self,
        store: &Store,
        batch: &mut Batch<'_>,
        first: Sends,
        stop: &CancellationToken,
    ) -> (Settlement, Option<OutboxError>) {
        let mut queue: VecDeque<_> = std::mem::take(&mut batch.rows).into();
        let attempts = queue.iter().map(|row| (row.id, row.attempts)).collect();
        let mut tried = Tried { attempts, settlement: Settlement::default() };
        let keep_alive = self.settings.lease / 3;
        let (mut permit, mut lost, mut deadline) = (Some(first), None, None);
        let mut alive_at = self.now();
        loop {
            let now = self.now();
            if stop.is_cancelled() || self.publisher.is_closed() {
                queue.clear();
                deadline.get_or_insert(now + self.settings.drain);
            }
            self.publisher.observe(now);
            self.start(&mut queue, &mut permit, &mut tried, now);
            let is_late = deadline.is_some_and(|deadline| now >= deadline);
            if self.publisher.is_idle() || is_late {
                return (tried.settlement, lost);
            }
            if lost.is_none() && now >= alive_at + keep_alive {
                lost = store.keep_alive(batch).await.err();
                alive_at = self.now();
                continue;
            }
            let wake_at = [self.publisher.wake_at(now), deadline, Some(alive_at + keep_alive)];
            let wake_at = wake_at.into_iter().flatten().filter(|at| *at > now).min();
            let wake_at = wake_at.unwrap_or(now + self.settings.poll);
            tokio::select! {
                answers = self.publisher.answers() => {
                    answers.into_iter().for_each(|answer| self.answered(answer, &mut tried));
                }
                () = stop.cancelled(), if deadline.is_none() => {}
                () = tokio::time::sleep_until(self.started + wake_at) => {}
            }
        }
    }

    /// Starts as many publishes as the broker takes.
    fn start(
        &mut self,
        queue: &mut VecDeque<StoredRow>,
        permit: &mut Option<Sends>,
        tried: &mut Tried,
        now: Duration,
    ) {
        while !queue.is_empty() {
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

    fn answered(&mut self, answer: Answer, tried: &mut Tried) {
        let (Publish { row: RowId { id, .. }, .. }, outcome) =
            self.publisher.outcome(answer, self.now());
        match outcome {
            Outcome::Confirmed => {
                self.published += 1;
                tried.settlement.confirmed.push(id);
            }
            Outcome::Returned(_) => {}
            Outcome::Failed(error) | Outcome::Refused(error) => self.failed(id, tried, error),
        }
    }

    /// Counts a failed attempt.
    fn failed(&mut self, id: i64, tried: &mut Tried, error: impl Display) {
        let before = tried.attempts.get(&id).copied().unwrap_or(0);
        tried.settlement.failed.push((id, before));
        let attempts = before.saturating_add(1);
        if attempts >= MAX_ATTEMPTS {
            tracing::error!(id, %error, "a row of python-cqrs's outbox has no attempt left");
        } else if self.waiting.len() < MAX_WAITING {
            let pause = self.settings.backoff.after(u32::from(attempts.unsigned_abs()));
            self.waiting.insert(id, self.now() + pause);
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

/// The rows of a batch, and what became of them.
struct Tried {
    /// The counters that were read, by id.
    attempts: HashMap<i64, i16>,
    settlement: Settlement,
}
