//! The messages of one publisher, queued or sent, until their outcome; part of the producer.

use std::collections::VecDeque;
use std::sync::Arc;

use cqrs_core::broker::{Confirmation, NumberRing, PendingConfirm};
use cqrs_core::consume::support::error_chain;
use cqrs_core::{Message, PublishErrorKind};
use tokio::time::Instant;
use uuid::Uuid;

use crate::connect::Returned;
use crate::error::{AmqpError, publish_error_kind};

/// All messages of one publisher and the answers of the server to them. No I/O, no clock: the publisher
/// reports what happened.
///
/// # Invariants
/// * A message that came in with [`push`](Self::push) is either queued or sent until it is confirmed,
///   rejected or expired; its place in the window is freed then.
/// * The order in which messages are sent is the order of `push`; those that must be sent again come before
///   all that were not sent yet, in their old order.
/// * After the server closed a channel, the messages that were on it are isolated: each is sent while no
///   other is unanswered. So when the channel closes again, it is known which message is the reason.
///
/// # Returned messages
/// RabbitMQ sends `basic.return` for an unroutable mandatory message before it acknowledges it, and the answers
/// are reported here in the order of the server. So an acknowledged message was not returned unless its return
/// was reported before.
///
/// A return names its message by id and routing key. Two messages of one id and topic on one channel at the same
/// time cannot be told apart by it. If all of them were returned, all are unroutable; if only some were, all are
/// reported as unknown.
#[derive(Default)]
pub(crate) struct Unconfirmed {
    queued: VecDeque<Queued>,
    /// By number, counted over all channels.
    sent: NumberRing<Sent>,
    /// The number of the current channel's first message, whose delivery tag is 1.
    first: u64,
    /// Memory for the numbers of messages that are answered together.
    numbers: Vec<u64>,
    /// Sent messages without an answer.
    unanswered: usize,
    /// Sent messages that expired before their answer.
    expired: usize,
    /// Not later than the earliest deadline.
    next_deadline: Option<Instant>,
}

struct Queued {
    pending: PendingConfirm,
    /// To be sent while no other message is unanswered.
    isolated: bool,
}

struct Sent {
    owner: Owner,
    isolated: bool,
    /// True for `basic.ack`; only a message whose return is ambiguous is kept after its answer.
    answer: Option<bool>,
    /// The reason of its return.
    returned: Option<String>,
    /// Another message of the same id and topic was in flight when one of them was returned.
    ambiguous: bool,
}

enum Owner {
    Waiting(PendingConfirm),
    /// The message expired, and the server may still answer.
    Expired {
        id: Uuid,
        topic: Arc<str>,
        mandatory: bool,
    },
}

impl Owner {
    fn pending(self) -> Option<PendingConfirm> {
        match self {
            Self::Waiting(pending) => Some(pending),
            Self::Expired { .. } => None,
        }
    }

    fn parts(&self) -> (Uuid, &str, bool) {
        match self {
            Self::Waiting(pending) => {
                let message = pending.message();
                (message.id, &message.topic, message.mandatory)
            }
            Self::Expired { id, topic, mandatory } => (*id, topic, *mandatory),
        }
    }

    /// Expires a message that waits.
    fn expire(&mut self) -> Option<PendingConfirm> {
        let Self::Waiting(pending) = self else { return None };
        let message = pending.message();
        let expired = Self::Expired {
            id: message.id,
            topic: Arc::clone(&message.topic),
            mandatory: message.mandatory,
        };
        std::mem::replace(self, expired).pending()
    }
}

impl Unconfirmed {
    /// Queues a message.
    pub(crate) fn push(&mut self, pending: PendingConfirm) {
        let deadline = pending.deadline();
        self.next_deadline = Some(self.next_deadline.map_or(deadline, |next| next.min(deadline)));
        self.queued.push_back(Queued { pending, isolated: false });
    }

    /// The next message to send, if one may be sent now.
    pub(crate) fn next(&self) -> Option<&Message> {
        let next = self.queued.front()?;
        let may_send = match next.isolated {
            true => self.unanswered == 0,
            // An isolated message is sent only when none is unanswered, and nothing follows before its answer.
            false => {
                self.unanswered != 1
                    || !self.sent().any(|sent| sent.isolated && sent.answer.is_none())
            }
        };
        may_send.then(|| next.pending.message())
    }

    /// Counts the next message as sent: it has the next delivery tag. False if its deadline came first: it is removed,
    /// must not be sent, and [`next`](Self::next) is another one.
    pub(crate) fn send_next(&mut self) -> bool {
        let Some(Queued { pending, isolated }) = self.queued.pop_front() else { return false };
        if !pending.start_sending() {
            return false;
        }
        let owner = Owner::Waiting(pending);
        self.sent.push(Sent { owner, isolated, answer: None, returned: None, ambiguous: false });
        self.unanswered += 1;
        true
    }

    /// Rejects the next message, which cannot be sent.
    pub(crate) fn reject_next(
        &mut self,
        kind: PublishErrorKind,
        detail: String,
        source: Option<AmqpError>,
    ) {
        if let Some(Queued { pending, .. }) = self.queued.pop_front() {
            pending.fail(kind, detail, source.map(Into::into));
        }
    }

    /// Settles the message with a delivery tag of the current channel, or all up to it: the server acknowledged them
    /// (or not: `basic.nack`).
    pub(crate) fn answered(&mut self, tag: u64, multiple: bool, ack: bool) {
        let number = tag.checked_sub(1).and_then(|index| self.first.checked_add(index));
        if !multiple {
            // No message has tag 0.
            if let Some(number) = number {
                self.answer(number, ack);
            }
            return;
        }
        // AMQP 0-9-1: tag 0 stands for all messages.
        let last = number.unwrap_or(u64::MAX);
        let mut numbers = std::mem::take(&mut self.numbers);
        let sent = self.sent.iter().take_while(|(number, _)| *number <= last);
        numbers.extend(sent.filter(|(_, sent)| sent.answer.is_none()).map(|(number, _)| number));
        for number in numbers.drain(..) {
            self.answer(number, ack);
        }
        self.numbers = numbers;
    }

    fn answer(&mut self, number: u64, ack: bool) {
        let Some(sent) = self.sent.get_mut(number) else { return };
        if sent.answer.is_none() {
            self.unanswered -= 1;
        }
        sent.answer = Some(ack);
        match sent.ambiguous {
            true => self.settle_group(number),
            false => self.finish(number),
        }
    }

    /// Records a return: it counts for the oldest message of its id and topic that has none yet.
    pub(crate) fn returned(&mut self, returned: &Returned) {
        let same = |sent: &Sent| {
            let (id, topic, mandatory) = sent.owner.parts();
            Some(id) == returned.id && topic == returned.topic && mandatory
        };
        let ambiguous = self.sent().filter(|sent| same(sent)).nth(1).is_some();
        let owner = self.sent.iter().find(|(_, sent)| same(sent) && sent.returned.is_none());
        let Some(owner) = owner.map(|(number, _)| number) else {
            tracing::warn!(topic = %returned.topic, "the server returned an unknown message");
            return;
        };
        for (number, sent) in self.sent.iter_mut().filter(|(_, sent)| same(sent)) {
            sent.ambiguous |= ambiguous;
            if number == owner {
                sent.returned = Some(returned.reason.clone());
            }
        }
    }

    /// Settles `number` and all others of its id and topic, once all of them are answered.
    fn settle_group(&mut self, number: u64) {
        let Some(sent) = self.sent.get(number) else { return };
        let parts = sent.owner.parts();
        let members: Vec<_> = self
            .sent
            .iter()
            .filter(|(_, other)| other.ambiguous && other.owner.parts() == parts)
            .map(|(number, sent)| (number, sent.answer.is_some(), sent.returned.is_some()))
            .collect();
        if members.iter().any(|(_, answered, _)| !answered) {
            return;
        }
        let all_returned = members.iter().all(|(_, _, returned)| *returned);
        for (number, _, _) in members {
            if all_returned {
                self.finish(number);
            } else if let Some(pending) = self.remove(number).and_then(|sent| sent.owner.pending())
            {
                let detail = "several messages of this id and topic were in flight and some of them \
                              were returned as unroutable; which ones cannot be told";
                pending.fail(PublishErrorKind::Unknown, detail, None);
            }
        }
    }

    fn finish(&mut self, number: u64) {
        let Some(sent) = self.remove(number) else { return };
        let Some(pending) = sent.owner.pending() else { return };
        match (sent.returned, sent.answer) {
            (Some(reason), _) => pending.fail(PublishErrorKind::Unroutable, reason, None),
            (None, Some(true)) => pending.confirm(Confirmation::default()),
            (None, _) => {
                let detail = "the server did not take responsibility for it (basic.nack)";
                pending.fail(PublishErrorKind::Refused, detail, None);
            }
        }
    }

    fn remove(&mut self, number: u64) -> Option<Sent> {
        let sent = self.sent.remove(number)?;
        self.unanswered -= usize::from(sent.answer.is_none());
        self.expired -= usize::from(matches!(sent.owner, Owner::Expired { .. }));
        Some(sent)
    }

    /// The server closed the channel because of a message on it. If only one is unanswered, it is rejected
    /// with the server's words; otherwise all unanswered ones are isolated.
    pub(crate) fn channel_closed(&mut self, error: &AmqpError) {
        let unanswered = self.sent.iter().filter(|(_, sent)| sent.answer.is_none());
        let unanswered: Vec<_> = unanswered.map(|(number, _)| number).take(2).collect();
        let only = match unanswered[..] {
            [only] => Some(only),
            _ => None,
        };
        if let Some(pending) = only.and_then(|number| self.remove(number)?.owner.pending()) {
            let detail = format!("the server closed the channel over it: {}", error_chain(error));
            pending.fail(publish_error_kind(error), detail, Some(error.clone().into()));
        }
        self.channel_lost(only.is_none());
    }

    /// The channel is gone. Queues its messages to be sent again, in the same order, unless their outcome is
    /// certain. `isolate`: unanswered messages are isolated, because one of them may have closed the channel.
    pub(crate) fn channel_lost(&mut self, isolate: bool) {
        for sent in self.sent.take_all().rev() {
            let Some(pending) = sent.owner.pending() else { continue };
            match sent.returned {
                // Returned before the channel was lost: certain without its acknowledgement.
                Some(reason) if !sent.ambiguous => {
                    pending.fail(PublishErrorKind::Unroutable, reason, None);
                }
                _ => {
                    let isolated = sent.isolated || (isolate && sent.answer.is_none());
                    self.queued.push_front(Queued { pending, isolated });
                }
            }
        }
        self.first = self.sent.next_number();
        (self.unanswered, self.expired) = (0, 0);
    }

    /// The time of the next [`expire`](Self::expire), or an earlier one.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// Expires the messages whose deadline has passed and returns how many.
    pub(crate) fn expire(&mut self, now: Instant) -> usize {
        if self.next_deadline.is_none_or(|deadline| deadline > now) {
            return 0;
        }
        let expired = self.take_pending(|pending| pending.deadline() <= now);
        let count = expired.len();
        for pending in expired {
            // The cause comes from the intake.
            pending.expire(None);
        }
        count
    }

    /// Rejects all messages, because the broker value shuts down, and returns how many.
    pub(crate) fn abandon(&mut self) -> usize {
        let abandoned = self.take_pending(|_| true);
        let count = abandoned.len();
        for pending in abandoned {
            let (kind, detail) = match pending.is_sent() {
                true => (
                    PublishErrorKind::Unknown,
                    "the broker value was shut down before its confirm came",
                ),
                false => {
                    (PublishErrorKind::Closed, "the broker value was shut down before it was sent")
                }
            };
            pending.fail(kind, detail, None);
        }
        count
    }

    /// Takes the messages that fulfil `condition`, sent ones first. The server may still answer these.
    fn take_pending(&mut self, condition: impl Fn(&PendingConfirm) -> bool) -> Vec<PendingConfirm> {
        let of_sent = self.sent.iter_mut();
        let mut taken: Vec<_> = of_sent
            .filter_map(|(_, sent)| match &sent.owner {
                Owner::Waiting(pending) if condition(pending) => sent.owner.expire(),
                _ => None,
            })
            .collect();
        self.expired += taken.len();
        let (queued, kept): (VecDeque<_>, _) =
            std::mem::take(&mut self.queued).into_iter().partition(|next| condition(&next.pending));
        self.queued = kept;
        taken.extend(queued.into_iter().map(|queued| queued.pending));
        let of_sent = self.sent().filter_map(|sent| match &sent.owner {
            Owner::Waiting(pending) => Some(pending),
            Owner::Expired { .. } => None,
        });
        let left = self.queued.iter().map(|queued| &queued.pending).chain(of_sent);
        self.next_deadline = left.map(PendingConfirm::deadline).min();
        taken
    }

    /// The delivery tag of the next message.
    #[cfg(test)]
    pub(super) fn next_tag(&self) -> u64 {
        self.sent.next_number() - self.first + 1
    }

    fn sent(&self) -> impl Iterator<Item = &Sent> {
        self.sent.iter().map(|(_, sent)| sent)
    }

    /// True if every message has its outcome.
    pub(crate) fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.sent.len() == self.expired
    }

    /// Messages that expired after they were sent and were never answered: each keeps a little memory.
    pub(crate) fn expired(&self) -> usize {
        self.expired
    }
}
