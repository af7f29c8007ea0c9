//! How the driver sends refused batches again: in smaller groups, in order, before anything newer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::producer::Producer;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::driver::{Driver, SHORT_TICK};
use super::{Client, Outgoing, submit, verdict};

/// The smallest `batch.size` that is chosen here.
const SMALLEST_BATCH: usize = 1_024;

impl Driver {
    /// Sends again what the broker refused because of the size of its batch. New messages wait in the lane. The
    /// client that comes back makes batches that the topic takes.
    pub(super) fn send_again(&mut self, client: Arc<Client>) -> Arc<Client> {
        let link = Arc::clone(&self.link);
        link.lane.block();
        link.set_client(None);
        self.wait_for_verdicts(&client);
        let mut waiting = VecDeque::from(link.resend.take());
        let topic = waiting.front().map(|outgoing| Arc::clone(&outgoing.pending.message().topic));
        // All records of a refused batch are here: a single one was alone in its batch.
        let mut is_batch = waiting.len() > 1;
        let mut piece = match is_batch {
            true => waiting.iter().map(Outgoing::size).sum::<usize>() / 2,
            false => 0,
        };
        // The largest group that the broker took as one batch: it was larger by what librdkafka adds.
        let mut taken = 0;
        while !waiting.is_empty() && !self.gives_up(&client) {
            let group = split(&mut waiting, piece);
            let size: usize = group.iter().map(Outgoing::size).sum();
            let alone = group.len() == 1;
            link.resend.set_alone(alone);
            self.send_group(&client, group, &mut waiting);
            let again = link.resend.take();
            if again.is_empty() {
                taken = if alone { taken } else { taken.max(size) };
                piece = if is_batch { piece } else { usize::MAX };
                continue;
            }
            is_batch = true;
            piece = piece.min(size) / 2;
            again.into_iter().rev().for_each(|outgoing| waiting.push_front(outgoing));
        }
        link.resend.end();
        let left = link.resend.take();
        left.into_iter().rev().for_each(|outgoing| waiting.push_front(outgoing));
        link.lane.put_front(waiting);
        let client = match is_batch {
            true => self.with_smaller_batches(
                client,
                match taken {
                    0 => piece,
                    taken => taken,
                },
                topic.as_deref().unwrap_or_default(),
            ),
            false => client,
        };
        link.set_client(Some(Arc::clone(&client)));
        client
    }

    /// Sends records and waits for their verdicts.
    fn send_group(&self, client: &Client, group: Vec<Outgoing>, rest: &mut VecDeque<Outgoing>) {
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
        self.wait_for_verdicts(client);
        group.into_iter().rev().for_each(|outgoing| rest.push_front(outgoing));
    }

    fn wait_for_verdicts(&self, client: &Client) {
        while client.in_flight_count() > 0 && !self.gives_up(client) {
            // A flush polls too, and does not wait for batches to fill.
            let _more = client.flush(SHORT_TICK);
            self.link.expire();
        }
    }

    /// Whether this client can send nothing more, or there is no more time.
    fn gives_up(&self, client: &Client) -> bool {
        self.failure(client).is_some()
            || self.link.closes_at().is_some_and(|end| end <= Instant::now())
    }

    fn with_smaller_batches(
        &mut self,
        client: Arc<Client>,
        size: usize,
        topic: &str,
    ) -> Arc<Client> {
        let size = size.max(SMALLEST_BATCH);
        let known = self.options.get("batch.size").and_then(|text| text.parse::<usize>().ok());
        if known.is_some_and(|known| known <= size) || self.gives_up(&client) {
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

/// Takes out the first records, `bytes` at most, but one at least.
fn split(waiting: &mut VecDeque<Outgoing>, bytes: usize) -> Vec<Outgoing> {
    let mut group = Vec::new();
    let mut size = 0_usize;
    while let Some(next) = waiting.pop_front() {
        size = size.saturating_add(next.size());
        if !group.is_empty() && size > bytes {
            waiting.push_front(next);
            break;
        }
        group.push(next);
    }
    group
}
