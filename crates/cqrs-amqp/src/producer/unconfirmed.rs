//! The messages of one publisher, queued or sent, until their outcome; part of the producer.

use std::collections::VecDeque;
use std::sync::Arc;

use cqrs_core::broker::{Confirmation, NumberRing, PendingConfirm, SharedMessage};
use cqrs_core::consume::support::error_chain;
use cqrs_core::{Message, PublishErrorKind};
use tokio::time::Instant;
use uuid::Uuid;

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
/// RabbitMQ sends `basic.return` for an unroutable mandatory message before it acknowledges it. lapin
/// keeps returns in a queue and attaches the oldest to *whichever* confirm completes next; the confirms of
/// one "multiple" acknowledgement complete in no order. So the confirm of a message may carry the return
/// of another one, and its own return may come with a later or an earlier confirm.
///
/// Therefore a return counts for the message that it names (id and routing key), and an acknowledgement
/// does not count before it is certain that no return of the same message follows:
///
/// 1. [`settle`](Self::settle) is called when the answers seen so far have no gap
///    ([`Confirms`](super::confirms::Confirms) guarantees that).
/// 2. A confirm that carries no return found lapin's queue empty: the return of its message, if there is
///    one, left the queue before, and was seen by `settle`.
/// 3. Otherwise its return may still be in the queue. Every acknowledgement takes one return out, and
///    every returned message is acknowledged after its return; so the queue never holds more returns
///    than there are messages returned and not yet acknowledged. Hence: when all messages whose returns
///    were seen are acknowledged too, no return of an acknowledged message is left in the queue. Until
///    then the acknowledgement is held back.
///
/// Two messages of one id and topic on one channel at the same time cannot be told apart by a return.
/// If all of them were returned, all are unroutable; if only some were, all are reported as unknown.
#[derive(Default)]
pub(crate) struct Unconfirmed {
    queued: VecDeque<Queued>,
    /// By number, counted over all channels.
    sent: NumberRing<Sent>,
    /// Numbers of the sent messages that are answered and not settled yet.
    answered: Vec<u64>,
    /// Sent messages without an answer.
    unanswered: usize,
    /// Sent messages that expired before their answer.
    expired: usize,
    /// Sent messages that a return names.
    returned: usize,
    /// Not later than the earliest deadline.
    next_deadline: Option<Instant>,
}

struct Queued {
    pending: PendingConfirm,
    /// To be sent while no other message is unanswered.
    isolated: bool,
}

struct Sent {
    /// `None` after it expired: the server may still answer.
    pending: Option<PendingConfirm>,
    id: Uuid,
    topic: Arc<str>,
    mandatory: bool,
    isolated: bool,
    answer: Option<Answer>,
    /// The reason of its return.
    returned: Option<String>,
    /// Another message of the same id and topic was in flight when one of them was returned.
    ambiguous: bool,
}

impl Sent {
    /// True if its return may be in lapin's queue though it was acknowledged: case 3 of [`Unconfirmed`].
    fn may_be_returned(&self) -> bool {
        let with_another = matches!(self.answer, Some(Answer::Ack { with_another: true }));
        with_another && self.mandatory && self.returned.is_none()
    }
}

#[derive(Clone, Copy)]
enum Answer {
    /// `with_another`: its confirm carried the return of another message.
    Ack {
        with_another: bool,
    },
    Nack,
}

/// A returned message as the server names it.
#[derive(Debug, Clone)]
pub(crate) struct Returned {
    pub(crate) id: Option<Uuid>,
    pub(crate) topic: String,
    /// The reason in the server's words.
    pub(crate) reason: String,
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

    /// Counts the next message as sent and returns its number and the message. `None` if its deadline came first:
    /// it is removed, and [`next`](Self::next) is another one.
    pub(crate) fn send_next(&mut self) -> Option<(u64, SharedMessage)> {
        let Queued { pending, isolated } = self.queued.pop_front()?;
        if !pending.start_sending() {
            return None;
        }
        let message = pending.shared_message();
        let sent = Sent {
            id: message.id,
            topic: Arc::clone(&message.topic),
            mandatory: message.mandatory,
            pending: Some(pending),
            isolated,
            answer: None,
            returned: None,
            ambiguous: false,
        };
        self.unanswered += 1;
        Some((self.sent.push(sent), message))
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

    /// Records the server's answer to `number`. lapin attached `returned` to it, which may name another
    /// message.
    pub(crate) fn answered(&mut self, number: u64, ack: bool, returned: Option<Returned>) {
        let carried = returned.is_some();
        let owner = returned.and_then(|returned| self.assign(returned));
        let Some(sent) = self.sent.get_mut(number) else { return };
        if sent.answer.is_none() {
            self.unanswered -= 1;
            self.answered.push(number);
        }
        sent.answer = Some(match ack {
            true => Answer::Ack { with_another: carried && owner != Some(number) },
            false => Answer::Nack,
        });
    }

    /// Assigns a return to the oldest message of its id and topic that has none yet.
    fn assign(&mut self, returned: Returned) -> Option<u64> {
        let same = |sent: &Sent| {
            Some(sent.id) == returned.id && *sent.topic == *returned.topic && sent.mandatory
        };
        let ambiguous = self.sent().filter(|sent| same(sent)).nth(1).is_some();
        let owner = self.sent.iter().find(|(_, sent)| same(sent) && sent.returned.is_none());
        let Some(owner) = owner.map(|(number, _)| number) else {
            tracing::warn!(topic = %returned.topic, "the server returned an unknown message");
            return None;
        };
        for (number, sent) in self.sent.iter_mut().filter(|(_, sent)| same(sent)) {
            sent.ambiguous |= ambiguous;
            if number == owner {
                sent.returned = Some(returned.reason.clone());
            }
        }
        self.returned += 1;
        Some(owner)
    }

    /// Confirms or rejects the answered messages whose outcome is certain. To be called when the answers
    /// seen so far have no gap.
    pub(crate) fn settle(&mut self) {
        if self.answered.is_empty() {
            return;
        }
        let open = self.returned > 0
            && self
                .sent()
                .any(|sent| sent.answer.is_none() && (sent.returned.is_some() || sent.ambiguous));
        let mut answered = std::mem::take(&mut self.answered);
        for number in answered.drain(..) {
            let Some(sent) = self.sent.get(number) else { continue };
            if sent.ambiguous {
                self.settle_group(number, open);
            } else if open && sent.may_be_returned() {
                self.answered.push(number);
            } else {
                self.finish(number);
            }
        }
        // Its memory serves the next ones.
        answered.append(&mut self.answered);
        self.answered = answered;
    }

    /// Settles `number` and all others of its id and topic, once all of them are answered.
    fn settle_group(&mut self, number: u64, open: bool) {
        let Some(Sent { id, topic, .. }) = self.sent.get(number) else { return };
        let members: Vec<_> = self
            .sent
            .iter()
            .filter(|(_, other)| other.ambiguous && other.id == *id && other.topic == *topic)
            .map(|(number, sent)| {
                let held = sent.answer.is_none() || (open && sent.may_be_returned());
                (number, held, sent.returned.is_some())
            })
            .collect();
        if members.iter().any(|(_, held, _)| *held) {
            self.answered.push(number);
            return;
        }
        let all_returned = members.iter().all(|(_, _, returned)| *returned);
        for (number, _, _) in members {
            if all_returned {
                self.finish(number);
            } else if let Some(pending) = self.remove(number).and_then(|sent| sent.pending) {
                let detail = "several messages of this id and topic were in flight and some of them \
                              were returned as unroutable; which ones cannot be told";
                pending.fail(PublishErrorKind::Unknown, detail, None);
            }
        }
    }

    fn finish(&mut self, number: u64) {
        let Some(sent) = self.remove(number) else { return };
        let Some(pending) = sent.pending else { return };
        match (sent.returned, sent.answer) {
            (Some(reason), _) => pending.fail(PublishErrorKind::Unroutable, reason, None),
            (None, Some(Answer::Ack { .. })) => pending.confirm(Confirmation::default()),
            (None, _) => {
                let detail = "the server did not take responsibility for it (basic.nack)";
                pending.fail(PublishErrorKind::Refused, detail, None);
            }
        }
    }

    fn remove(&mut self, number: u64) -> Option<Sent> {
        let sent = self.sent.remove(number)?;
        self.unanswered -= usize::from(sent.answer.is_none());
        self.expired -= usize::from(sent.pending.is_none());
        self.returned -= usize::from(sent.returned.is_some());
        Some(sent)
    }

    /// The server closed the channel because of a message on it. If only one is unanswered, it is rejected
    /// with the server's words; otherwise all unanswered ones are isolated.
    pub(crate) fn channel_closed(&mut self, error: &AmqpError) {
        self.settle();
        let unanswered = self.sent.iter().filter(|(_, sent)| sent.answer.is_none());
        let unanswered: Vec<_> = unanswered.map(|(number, _)| number).take(2).collect();
        let only = match unanswered[..] {
            [only] => Some(only),
            _ => None,
        };
        if let Some(pending) = only.and_then(|number| self.remove(number)?.pending) {
            let detail = format!("the server closed the channel over it: {}", error_chain(error));
            pending.fail(publish_error_kind(error), detail, Some(error.clone().into()));
        }
        self.channel_lost(only.is_none());
    }

    /// The channel is gone. Settles what is certain, and queues the rest to be sent again, in the same
    /// order. `isolate`: unanswered messages are isolated, because one of them may have closed the channel.
    pub(crate) fn channel_lost(&mut self, isolate: bool) {
        self.settle();
        for sent in self.sent.take_all().rev() {
            let Some(pending) = sent.pending else { continue };
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
        self.answered.clear();
        (self.unanswered, self.expired, self.returned) = (0, 0, 0);
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
            .filter_map(|(_, sent)| sent.pending.take_if(|pending| condition(pending)))
            .collect();
        self.expired += taken.len();
        let (queued, kept): (VecDeque<_>, _) =
            std::mem::take(&mut self.queued).into_iter().partition(|next| condition(&next.pending));
        self.queued = kept;
        taken.extend(queued.into_iter().map(|queued| queued.pending));
        let of_sent = self.sent().filter_map(|sent| sent.pending.as_ref());
        let left = self.queued.iter().map(|queued| &queued.pending).chain(of_sent);
        self.next_deadline = left.map(PendingConfirm::deadline).min();
        taken
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
