//! The resend of oversized batches by the supervisor: in smaller groups, in order, before newer records.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::broker::PublishErrorKind;
use rdkafka::producer::Producer;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::client::Client;
use super::delivery_error;
use super::outgoing::Outgoing;
use super::supervisor::{SHORT_TICK, Supervisor};

/// The smallest `batch.size` that is chosen here.
const SMALLEST_BATCH: usize = 1_024;
/// The default `batch.size`.
const DEFAULT_BATCH: usize = 1_000_000;
/// The least that librdkafka adds to a record.
const FRAMING: usize = 16;
/// The wait for the delivery reports of what librdkafka has. Nothing else is published meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// One round of sending again.
#[derive(Default)]
struct Round {
    /// Not sent in this round, because it ended early.
    left: Vec<Outgoing>,
    /// Set when delivery reports did not come in time: nothing more is sent.
    ended: bool,
    /// The limit for batches, and its topic: half of the smallest group of one partition that was refused although
    /// each of its records was stored.
    limit: Option<(usize, Arc<str>)>,
}

impl Supervisor {
    /// Sends the records of oversized batches again. New messages wait in the overflow queue. The returned client
    /// makes batches that the topic takes.
    pub(super) fn resend(&mut self, client: Arc<Client>) -> Arc<Client> {
        let handle = Arc::clone(&self.handle);
        handle.pause();
        // Older and newer records of the same partitions get their delivery reports first.
        let is_quiet = self.wait_for_reports(&client);
        let mut round = Round { ended: !is_quiet, ..Round::default() };
        for batch in handle.oversized.take() {
            if batch.is_single() {
                batch.records.into_iter().for_each(|outgoing| self.fail_too_large(outgoing));
            } else if !is_quiet && !self.gives_up(&client) {
                // Newer records of its partition may be in flight.
                let detail =
                    "its batch was refused as too large, and other records are not confirmed yet";
                for Outgoing { pending, .. } in batch.records {
                    pending.fail(PublishErrorKind::NotSent, detail, None);
                }
            } else {
                let mut waiting = VecDeque::from(batch.records);
                while !waiting.is_empty() {
                    let group = split(&mut waiting, self.batch_size());
                    self.send_in_halves(&client, group, &mut round);
                }
            }
        }
        handle.oversized.end();
        let late = handle.oversized.take().into_iter().flat_map(|batch| batch.records);
        round.left.extend(late);
        round.left.sort_by_key(|outgoing| outgoing.number);
        handle.overflow.put_front(round.left.into());
        let client = match round.limit {
            // Records in flight keep their client.
            Some((limit, topic)) if !round.ended => {
                self.with_smaller_batches(client, limit, &topic)
            }
            _ => client,
        };
        handle.set_client(Some(Arc::clone(&client)));
        client
    }

    /// Sends records of one partition, and the refused ones in halves. Returns whether all were stored.
    fn send_in_halves(&self, client: &Client, group: Vec<Outgoing>, round: &mut Round) -> bool {
        if round.ended || self.gives_up(client) {
            round.left.extend(group);
            return false;
        }
        let (count, oversized) = (group.len(), Arc::clone(&self.handle.oversized));
        let before = oversized.stored();
        self.send_group(client, group, round);
        let refused: Vec<_> =
            oversized.take().into_iter().flat_map(|batch| batch.records).collect();
        let all_reported = oversized.stored() - before + refused.len() == count;
        let (refusals, size) = (refused.len(), refused.iter().map(weight).sum::<usize>());
        let topic = refused.first().map(|first| Arc::clone(&first.pending.message().topic));
        if count == 1 {
            let is_stored = all_reported && refused.is_empty();
            refused.into_iter().for_each(|outgoing| self.fail_too_large(outgoing));
            return is_stored;
        }
        let mut rest = VecDeque::from(refused);
        let mut all_stored = all_reported;
        if refusals > 1 {
            let half = split(&mut rest, size / 2);
            all_stored &= self.send_in_halves(client, half, round);
        }
        if !rest.is_empty() {
            all_stored &= self.send_in_halves(client, rest.into(), round);
        }
        // If one was not stored, it may be too large alone, and the group's size proves nothing.
        if all_stored
            && refusals > 1
            && round.limit.as_ref().is_none_or(|(least, _)| size / 2 < *least)
        {
            round.limit = topic.map(|topic| (size / 2, topic));
        }
        all_stored
    }

    /// Fails a record that was refused as the only one of its batch.
    fn fail_too_large(&self, outgoing: Outgoing) {
        delivery_error::fail(
            outgoing.pending,
            Code::MessageSizeTooLarge,
            self.handle.health.cause(),
        );
    }

    /// Sends records and waits for their delivery reports.
    fn send_group(&self, client: &Client, group: Vec<Outgoing>, round: &mut Round) {
        let mut group = VecDeque::from(group);
        while let Some(outgoing) = group.pop_front() {
            if outgoing.pending.deadline() <= tokio::time::Instant::now() {
                outgoing.pending.expire(None);
            } else if let Some(outgoing) = self.handle.submit_queued(client, outgoing) {
                group.push_front(outgoing);
                break;
            }
        }
        round.ended |= !self.wait_for_reports(client);
        round.left.extend(group);
    }

    /// Waits for all delivery reports. `false`: not all came in time.
    fn wait_for_reports(&self, client: &Client) -> bool {
        let end = Instant::now() + LONGEST_WAIT;
        while client.in_flight_count() > 0 {
            if Instant::now() >= end || self.gives_up(client) {
                return false;
            }
            // A flush polls too, and does not wait for batches to fill.
            let _more = client.flush(SHORT_TICK);
            self.handle.expire();
        }
        true
    }

    /// Returns whether this client can send nothing more, or the shutdown's deadline is over.
    fn gives_up(&self, client: &Client) -> bool {
        self.failure(client).is_some() || self.handle.is_past_end()
    }

    fn batch_size(&self) -> usize {
        let known = self.options.get("batch.size").and_then(|text| text.parse().ok());
        known.unwrap_or(DEFAULT_BATCH)
    }

    fn with_smaller_batches(
        &mut self,
        client: Arc<Client>,
        size: usize,
        topic: &str,
    ) -> Arc<Client> {
        let size = size.max(SMALLEST_BATCH);
        if self.batch_size() <= size || self.gives_up(&client) {
            return client;
        }
        let before = self.options.clone();
        self.options.set("batch.size", size.to_string());
        match self.make_client() {
            Ok(smaller) => {
                tracing::warn!(
                    topic,
                    batch_size = size,
                    "the broker refused a batch as too large: this producer makes smaller batches from now \
                     on; raise max.message.bytes of the topic, or lower batch_size"
                );
                smaller
            }
            Err(error) => {
                tracing::warn!(topic, %error, "no producer with smaller batches");
                self.options = before;
                client
            }
        }
    }
}

/// About its bytes in a batch.
fn weight(outgoing: &Outgoing) -> usize {
    outgoing.size() + FRAMING
}

/// Takes out the first records: `bytes` at most, but at least one record.
fn split(waiting: &mut VecDeque<Outgoing>, bytes: usize) -> Vec<Outgoing> {
    let mut group = Vec::new();
    let mut size = 0_usize;
    while let Some(next) = waiting.pop_front() {
        size = size.saturating_add(weight(&next));
        if !group.is_empty() && size > bytes {
            waiting.push_front(next);
            break;
        }
        group.push(next);
    }
    group
}

#[cfg(test)]
mod tests;
