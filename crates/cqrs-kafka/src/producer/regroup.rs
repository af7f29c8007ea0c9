//! How the driver sends refused batches again: in smaller groups, in order, before anything newer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::broker::PublishErrorKind;
use rdkafka::producer::Producer;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::driver::{Driver, SHORT_TICK};
use super::{Client, Outgoing, submit, verdict};

/// The smallest `batch.size` that is chosen here.
const SMALLEST_BATCH: usize = 1_024;
/// The default `batch.size`.
const DEFAULT_BATCH: usize = 1_000_000;
/// What librdkafka adds to a record at least.
const FRAMING: usize = 16;
/// How long the verdicts on what librdkafka has are waited for. Nothing else is published meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// One round of sending again.
#[derive(Default)]
struct Round {
    /// Not sent in this round, because it ended early.
    left: Vec<Outgoing>,
    /// Whether verdicts did not come in time: nothing more is sent.
    ended: bool,
    /// What batches may have: half of the smallest group of one partition that was refused although each of its
    /// records was stored. And its topic.
    limit: Option<(usize, Arc<str>)>,
}

impl Driver {
    /// Sends again what the broker refused because of the size of its batch. New messages wait in the lane. The
    /// client that comes back makes batches that the topic takes.
    pub(super) fn send_again(&mut self, client: Arc<Client>) -> Arc<Client> {
        let link = Arc::clone(&self.link);
        link.lane.block();
        link.set_client(None);
        // Older and newer records of the refused ones' partitions are judged first.
        let is_quiet = self.wait_for_verdicts(&client);
        let mut round = Round { ended: !is_quiet, ..Round::default() };
        for refused in link.resend.take() {
            if refused.was_alone() {
                refused.records.into_iter().for_each(|outgoing| self.refuse_alone(outgoing));
            } else if !is_quiet && !self.gives_up(&client) {
                // Newer records of its partition may be on their way.
                let detail =
                    "its batch was refused as too large, and other records are not confirmed yet";
                for Outgoing { pending, .. } in refused.records {
                    pending.fail(PublishErrorKind::NotSent, detail, None);
                }
            } else {
                let mut waiting = VecDeque::from(refused.records);
                while !waiting.is_empty() {
                    let group = split(&mut waiting, self.batch_size());
                    self.settle(&client, group, &mut round);
                }
            }
        }
        link.resend.end();
        let late = link.resend.take().into_iter().flat_map(|refused| refused.records);
        round.left.extend(late);
        round.left.sort_by_key(|outgoing| outgoing.number);
        link.lane.put_front(round.left.into());
        let client = match round.limit {
            // What is in flight keeps its client.
            Some((limit, topic)) if !round.ended => {
                self.with_smaller_batches(client, limit, &topic)
            }
            _ => client,
        };
        link.set_client(Some(Arc::clone(&client)));
        client
    }

    /// Sends records of one partition, and what is refused of them in halves. Whether all were stored.
    fn settle(&self, client: &Client, group: Vec<Outgoing>, round: &mut Round) -> bool {
        if round.ended || self.gives_up(client) {
            round.left.extend(group);
            return false;
        }
        let (count, resend) = (group.len(), Arc::clone(&self.link.resend));
        let before = resend.stored();
        self.send_group(client, group, round);
        let again: Vec<_> = resend.take().into_iter().flat_map(|refused| refused.records).collect();
        let all_judged = resend.stored() - before + again.len() == count;
        let (refused, size) = (again.len(), again.iter().map(weight).sum::<usize>());
        let topic = again.first().map(|first| Arc::clone(&first.pending.message().topic));
        if count == 1 {
            let is_stored = all_judged && again.is_empty();
            again.into_iter().for_each(|outgoing| self.refuse_alone(outgoing));
            return is_stored;
        }
        let mut rest = VecDeque::from(again);
        let mut all_stored = all_judged;
        if refused > 1 {
            let half = split(&mut rest, size / 2);
            all_stored &= self.settle(client, half, round);
        }
        if !rest.is_empty() {
            all_stored &= self.settle(client, rest.into(), round);
        }
        // Else one of them may be too large alone, which says nothing of batches.
        if all_stored
            && refused > 1
            && round.limit.as_ref().is_none_or(|(least, _)| size / 2 < *least)
        {
            round.limit = topic.map(|topic| (size / 2, topic));
        }
        all_stored
    }

    /// Ends a record that was refused as the only one of its batch.
    fn refuse_alone(&self, outgoing: Outgoing) {
        verdict::fail(outgoing.pending, Code::MessageSizeTooLarge, self.link.health.cause());
    }

    /// Sends records and waits for their verdicts.
    fn send_group(&self, client: &Client, group: Vec<Outgoing>, round: &mut Round) {
        let mut group = VecDeque::from(group);
        while let Some(outgoing) = group.pop_front() {
            if outgoing.pending.deadline() <= tokio::time::Instant::now() {
                outgoing.pending.expire(None);
                continue;
            }
            let message = outgoing.pending.message().clone();
            match submit(client, outgoing, &message, self.link.headers) {
                Ok(()) => {}
                Err((outgoing, Code::QueueFull | Code::Fatal)) => {
                    group.push_front(outgoing);
                    break;
                }
                Err((outgoing, code)) => {
                    let (kind, detail) = verdict::refuse(code);
                    outgoing.pending.fail(kind, detail, Some(verdict::answer(code).into()));
                }
            }
        }
        round.ended |= !self.wait_for_verdicts(client);
        round.left.extend(group);
    }

    /// `false`: not all came in time.
    fn wait_for_verdicts(&self, client: &Client) -> bool {
        let end = Instant::now() + LONGEST_WAIT;
        while client.in_flight_count() > 0 {
            if Instant::now() >= end || self.gives_up(client) {
                return false;
            }
            // A flush polls too, and does not wait for batches to fill.
            let _more = client.flush(SHORT_TICK);
            self.link.expire();
        }
        true
    }

    /// Whether this client can send nothing more, or there is no more time.
    fn gives_up(&self, client: &Client) -> bool {
        self.failure(client).is_some()
            || self.link.closes_at().is_some_and(|end| end <= Instant::now())
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

/// Takes out the first records, `bytes` at most, but one at least.
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
