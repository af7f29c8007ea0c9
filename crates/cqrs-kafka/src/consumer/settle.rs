//! The [`Settle`] of one delivery: ack, retry or dead letter. Made by the source, used by the runtime.

use std::error::Error as _;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::{DeadLetter, Delayed, RetryState, Settle, SettleError};

use rdkafka::message::{Header, OwnedHeaders};

use super::copies::{RecordCopy, Written};
use super::partition::Partition;
use super::record::Record;
use super::retry_headers::{
    DUE, ORIGINAL_OFFSET, ORIGINAL_PARTITION, ORIGINAL_TIMESTAMP, ORIGINAL_TOPIC,
};
use super::subscription_state::SubscriptionState;
use crate::topics;

/// The longest key, in bytes, that stays in a dead letter without a body.
const LONGEST_KEY: usize = 16 << 10;

/// One delivery. Keeps its record, so that a dropped delivery can be redelivered.
pub(super) struct KafkaSettle {
    state: Arc<SubscriptionState>,
    partition: Arc<Partition>,
    /// `None` once it is settled.
    lease: Option<Lease>,
}

/// Beyond 120 bytes, glibc's allocator merges what is freed with its neighbours: allocating and freeing takes three
/// times as long.
const _: () = assert!(size_of::<KafkaSettle>() <= 120);

struct Lease {
    record: Record,
    /// Set if its handler counts as running.
    running: bool,
}

impl Lease {
    /// Keeps the record for a later attempt.
    fn hold(&mut self, partition: &Partition, state: RetryState) -> Delayed {
        partition.hold(&self.record, state);
        // A revoke does not wait for held records.
        if std::mem::take(&mut self.running) {
            partition.end();
        }
        Delayed::Hold
    }
}

impl KafkaSettle {
    /// The settlement of a delivery of `record`, in `spare` if there is one.
    pub(super) fn boxed(
        spare: Option<Box<Self>>,
        state: &Arc<SubscriptionState>,
        partition: &Arc<Partition>,
        record: Record,
    ) -> Box<Self> {
        let mut settle = match spare {
            // Counts are not changed for what it has already: other threads read and change them.
            Some(mut spare) if Arc::ptr_eq(&spare.state, state) && spare.lease.is_none() => {
                if !Arc::ptr_eq(&spare.partition, partition) {
                    spare.partition = Arc::clone(partition);
                }
                spare
            }
            _ => {
                let (state, partition) = (Arc::clone(state), Arc::clone(partition));
                Box::new(Self { state, partition, lease: None })
            }
        };
        settle.lease = Some(Lease { record, running: false });
        settle
    }

    /// The topic, partition and offset of the record, or of the one that a retry copy was made from.
    fn origin(partition: &Partition, record: &Record) -> (Arc<str>, i32, i64) {
        let here = || (Arc::clone(&partition.topic), partition.id, record.offset);
        if !partition.is_retry {
            return here();
        }
        let origin = || {
            let number = |name| record.text(name).and_then(|text| text.parse::<i64>().ok());
            let topic = record.text(ORIGINAL_TOPIC)?;
            let id = i32::try_from(number(ORIGINAL_PARTITION)?).ok()?;
            Some((topic.into(), id, number(ORIGINAL_OFFSET)?))
        };
        origin().unwrap_or_else(here)
    }
}

fn settled() -> SettleError {
    SettleError::new("the delivery is settled already")
}

/// The headers of a dead letter without a body.
fn dead_letter_headers(letter: &DeadLetter) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new();
    for (key, value) in letter.to_headers() {
        headers = headers.insert(Header { key, value: Some(&value) });
    }
    headers
}

impl Settle for KafkaSettle {
    fn begin(&mut self) -> bool {
        let Some(lease) = &mut self.lease else { return false };
        if !lease.running {
            lease.running = self.partition.begin();
        }
        lease.running
    }

    fn postpone(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        // A revoke does not wait for held records.
        if std::mem::take(&mut lease.running) {
            self.partition.end();
            self.partition.run_ended(&lease.record);
        }
    }

    fn note_attempt(&mut self, state: &RetryState) {
        if let Some(Lease { record, .. }) = &self.lease {
            self.partition.tracker().note_attempts(record.offset, *state);
        }
    }

    fn is_revoked(&self) -> bool {
        self.lease.is_some() && self.partition.is_revoked()
    }

    fn poll_ack(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        let Some(lease) = &mut self.lease else { return Poll::Ready(Err(settled())) };
        let (partition, record) = (&self.partition, &lease.record);
        let counts = partition.finish(record.offset);
        if std::mem::take(&mut lease.running) {
            partition.end();
        }
        if !counts {
            let text = format!(
                "{} [{}] is no longer assigned to this consumer; offset {} is redelivered",
                partition.topic, partition.id, record.offset
            );
            return Poll::Ready(Err(SettleError::new(text)));
        }
        self.state.release(partition, 1, record.size());
        self.lease = None;
        Poll::Ready(Ok(()))
    }

    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        let state = *state;
        Box::pin(async move {
            let Some(lease) = &mut self.lease else { return Err(settled()) };
            let Some(waits_for) = self.state.plan.retry_delay(delay)? else {
                return Ok(lease.hold(&self.partition, state));
            };
            let record = &lease.record;
            let (topic, partition, offset) = Self::origin(&self.partition, record);
            let millis = |time: SystemTime| {
                time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis()).to_string()
            };
            let mut added = state.to_headers();
            // Rounded up: a copy is never delivered before its delay is over.
            let due = SystemTime::now() + delay + Duration::from_millis(1);
            added.push((DUE, millis(due)));
            added.push((ORIGINAL_TOPIC, topic.to_string()));
            added.push((ORIGINAL_PARTITION, partition.to_string()));
            added.push((ORIGINAL_OFFSET, offset.to_string()));
            if let Some(at) = record.original_timestamp() {
                added.push((ORIGINAL_TIMESTAMP, millis(at)));
            }
            let copy = RecordCopy {
                to: topics::retry_topic(&topic, &self.state.plan.request.group, waits_for),
                from: topic,
                key: record.key(),
                body: record.body(),
                headers: record.headers_of_copy(&added),
                size: record.known_size(),
            };
            match self.state.copies.write(&copy).await? {
                Written::Stored => Ok(Delayed::Scheduled),
                Written::TooLarge(error) => {
                    let name = &self.state.plan.request.name;
                    if let Some(left_out) = self.state.copies.too_large.line() {
                        tracing::warn!(subscription = %name, %error, left_out, "no retry copy; it is held here");
                    }
                    Ok(lease.hold(&self.partition, state))
                }
            }
        })
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let mut letter = letter.clone();
        Box::pin(async move {
            let Some(lease) = &self.lease else { return Err(settled()) };
            let record = &lease.record;
            let (topic, ..) = Self::origin(&self.partition, record);
            let Some(to) = self.state.plan.request.dead_letter_topic(&topic) else {
                // The subscription drops its dead letters.
                return Ok(());
            };
            let copies = &self.state.copies;
            let mut copy = RecordCopy {
                to,
                from: topic,
                key: record.key(),
                body: record.body(),
                headers: record.headers_of_copy(&letter.to_headers()),
                size: record.known_size(),
            };
            let Written::TooLarge(error) = copies.write(&copy).await? else { return Ok(()) };
            if let Some(left_out) = copies.too_large.line() {
                tracing::warn!(
                    subscription = %self.state.plan.request.name,
                    topic = letter.topic,
                    partition = letter.partition,
                    offset = letter.offset,
                    left_out,
                    error = error.source().map(tracing::field::display),
                    "its dead letter has no body: the original is at this topic, partition and offset"
                );
            }
            let key = copy.key.take().filter(|key| key.len() <= LONGEST_KEY);
            let left_out = record.known_size() - key.as_ref().map_or(0, Bytes::len);
            letter.omitted_bytes = u64::try_from(left_out).ok();
            copy.headers = Some(dead_letter_headers(&letter));
            (copy.key, copy.body, copy.size) = (key, None, 0);
            match copies.write(&copy).await? {
                Written::Stored => Ok(()),
                Written::TooLarge(error) => Err(error),
            }
        })
    }
}

impl Drop for KafkaSettle {
    fn drop(&mut self) {
        let Some(Lease { mut record, running }) = self.lease.take() else { return };
        if running {
            self.partition.end();
            self.partition.run_ended(&record);
        }
        record.drops = record.drops.saturating_add(1);
        self.state.put_back(Arc::clone(&self.partition), record);
    }
}

cqrs_core::debug_fields!(KafkaSettle {}, |it|
    offset: it.lease.as_ref().map(|lease| lease.record.offset));
