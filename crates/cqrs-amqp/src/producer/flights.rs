use std::collections::BTreeMap;
use std::sync::Arc;

use cqrs_core::PublishErrorKind;
use cqrs_core::broker::{Confirmation, PendingConfirm};
use uuid::Uuid;

/// The messages written on one channel, and which of the server's answers belongs to which.
///
/// # Returned messages
/// RabbitMQ sends `basic.return` for an unroutable mandatory message before it acknowledges it. lapin
/// keeps returns in a queue and gives the oldest to *whichever* confirm completes next; the confirms of
/// one "multiple" acknowledgement complete in no order. So the confirm of a message may carry the return
/// of another one, and its own return may come with a later confirm, or an earlier one.
///
/// Which is why a return counts for the message it names (id and routing key), and an acknowledgement is
/// not believed before it is certain that the message's own return is not on its way:
///
/// 1. [`cut`](Self::cut) is called when the answers seen so far have no gap
///    ([`Confirms`](super::confirms::Confirms) sees to that).
/// 2. A confirm that carries nothing found lapin's queue empty: the return of its message, if there is
///    one, came out before, and was seen by the cut.
/// 3. Otherwise its return may still be in the queue. Every acknowledgement takes one return out, and
///    every returned message is acknowledged after its return; so the queue never holds more returns
///    than there are messages returned and not yet acknowledged. Hence: when all messages whose returns
///    were seen are acknowledged too, no return of an acknowledged message is left in the queue. Until
///    then the acknowledgement is held back.
///
/// Two messages of one id and topic on one channel at the same time cannot be told apart by a return.
/// If all of them came back, all are unroutable; if only some did, all are reported as unknown.
#[derive(Default)]
pub(crate) struct Flights {
    flights: BTreeMap<u64, Flight>,
    /// Answered, and not settled yet.
    landed: Vec<u64>,
    unanswered: usize,
    /// In the air without a holder: expired.
    given_up: usize,
    /// In the air and named by a return.
    returned: usize,
}

struct Flight {
    /// `None` once it expired: the server may still answer.
    pending: Option<PendingConfirm>,
    id: Uuid,
    topic: Arc<str>,
    mandatory: bool,
    suspect: bool,
    answer: Option<Answer>,
    returned: Option<String>,
    /// Another message of the same id and topic was in the air when one of them was returned.
    ambiguous: bool,
}

impl Flight {
    /// Whether its return may wait in lapin's queue though it was acknowledged: case 3 of [`Flights`].
    fn may_still_come_back(&self) -> bool {
        let with_another = matches!(self.answer, Some(Answer::Ack { with_another: true }));
        with_another && self.mandatory && self.returned.is_none()
    }
}

#[derive(Clone, Copy)]
enum Answer {
    Ack { with_another: bool },
    Nack,
}

/// A returned message as the server names it.
#[derive(Debug, Clone)]
pub(crate) struct Returned {
    pub(crate) id: Option<Uuid>,
    pub(crate) topic: String,
    /// Why, in the server's words.
    pub(crate) reason: String,
}

/// A message that has to be written again.
pub(super) struct Again {
    pub(super) pending: PendingConfirm,
    pub(super) suspect: bool,
}

impl Flights {
    /// `number` must be larger than all before.
    pub(super) fn took_off(&mut self, number: u64, pending: PendingConfirm, suspect: bool) {
        let message = pending.message();
        let flight = Flight {
            id: message.id,
            topic: Arc::clone(&message.topic),
            mandatory: message.mandatory,
            pending: Some(pending),
            suspect,
            answer: None,
            returned: None,
            ambiguous: false,
        };
        self.flights.insert(number, flight);
        self.unanswered += 1;
    }

    /// The server answered `number`, and lapin attached `returned` to the answer.
    pub(super) fn answered(&mut self, number: u64, ack: bool, returned: Option<Returned>) {
        let carried = returned.is_some();
        let owner = returned.and_then(|returned| self.assign(returned));
        let Some(flight) = self.flights.get_mut(&number) else { return };
        if flight.answer.is_none() {
            self.unanswered -= 1;
            self.landed.push(number);
        }
        flight.answer = Some(match ack {
            true => Answer::Ack { with_another: carried && owner != Some(number) },
            false => Answer::Nack,
        });
    }

    /// Finds whose return it is: the oldest message of that id and topic that has none yet.
    fn assign(&mut self, returned: Returned) -> Option<u64> {
        let same = |flight: &Flight| {
            Some(flight.id) == returned.id && *flight.topic == *returned.topic && flight.mandatory
        };
        let mut group = self.flights.iter().filter(|(_, flight)| same(flight));
        let alone = group.by_ref().nth(1).is_none();
        let owner = self
            .flights
            .iter()
            .find(|(_, flight)| same(flight) && flight.returned.is_none())
            .map(|(number, _)| *number);
        let Some(owner) = owner else {
            tracing::warn!(topic = %returned.topic, "the server returned a message nobody waits for");
            return None;
        };
        for (number, flight) in self.flights.iter_mut().filter(|(_, flight)| same(flight)) {
            flight.ambiguous |= !alone;
            if *number == owner {
                flight.returned = Some(returned.reason.clone());
            }
        }
        self.returned += 1;
        Some(owner)
    }

    /// Settles what is certain. To be called when the answers seen so far have no gap.
    pub(super) fn cut(&mut self) {
        if self.landed.is_empty() {
            return;
        }
        let open = self.returned > 0
            && self.flights.values().any(|flight| {
                flight.answer.is_none() && (flight.returned.is_some() || flight.ambiguous)
            });
        for number in std::mem::take(&mut self.landed) {
            let Some(flight) = self.flights.get(&number) else { continue };
            if flight.ambiguous {
                self.cut_group(number, open);
            } else if open && flight.may_still_come_back() {
                self.landed.push(number);
            } else {
                self.land(number);
            }
        }
    }

    /// Settles `number` and all others of its id and topic, once all of them are answered.
    fn cut_group(&mut self, number: u64, open: bool) {
        let Some(Flight { id, topic, .. }) = self.flights.get(&number) else { return };
        let members: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, other)| other.ambiguous && other.id == *id && other.topic == *topic)
            .map(|(number, flight)| {
                let held = flight.answer.is_none() || (open && flight.may_still_come_back());
                (*number, held, flight.returned.is_some())
            })
            .collect();
        if members.iter().any(|(_, held, _)| *held) {
            self.landed.push(number);
            return;
        }
        let all_returned = members.iter().all(|(_, _, returned)| *returned);
        for (number, _, _) in members {
            if all_returned {
                self.land(number);
            } else if let Some(pending) = self.remove(number).and_then(|flight| flight.pending) {
                let detail = "several messages of this id and topic were in flight and some of them \
                              were returned as unroutable; which ones cannot be told";
                pending.fail(PublishErrorKind::Unknown, detail, None);
            }
        }
    }

    fn land(&mut self, number: u64) {
        let Some(flight) = self.remove(number) else { return };
        let Some(pending) = flight.pending else { return };
        match (flight.returned, flight.answer) {
            (Some(reason), _) => pending.fail(PublishErrorKind::Unroutable, reason, None),
            (None, Some(Answer::Ack { .. })) => pending.confirm(Confirmation::default()),
            (None, _) => {
                let detail = "the server did not take responsibility for it (basic.nack)";
                pending.fail(PublishErrorKind::Refused, detail, None);
            }
        }
    }

    fn remove(&mut self, number: u64) -> Option<Flight> {
        let flight = self.flights.remove(&number)?;
        self.unanswered -= usize::from(flight.answer.is_none());
        self.given_up -= usize::from(flight.pending.is_none());
        self.returned -= usize::from(flight.returned.is_some());
        Some(flight)
    }

    /// The only message without an answer, when there is exactly one: taken out, if anybody still waits
    /// for it.
    pub(super) fn take_only_unanswered(&mut self) -> Option<PendingConfirm> {
        let mut unanswered = self.flights.iter().filter(|(_, flight)| flight.answer.is_none());
        let (number, _) = unanswered.next()?;
        let number = *number;
        match unanswered.next() {
            Some(_) => None,
            None => self.remove(number)?.pending,
        }
    }

    /// The channel is gone: settles what is certain all the same, and gives back the rest in the order
    /// in which it was written. `suspect`: whether an unanswered one may have closed the channel.
    pub(super) fn crash(&mut self, suspect: bool) -> Vec<Again> {
        self.cut();
        let mut again = Vec::new();
        for (_, flight) in std::mem::take(self).flights {
            let Some(pending) = flight.pending else { continue };
            match flight.returned {
                // Returned before the channel went: certain without its acknowledgement.
                Some(reason) if !flight.ambiguous => {
                    pending.fail(PublishErrorKind::Unroutable, reason, None);
                }
                _ => {
                    let suspect = flight.suspect || (suspect && flight.answer.is_none());
                    again.push(Again { pending, suspect });
                }
            }
        }
        again
    }

    /// Takes the holders of those that fulfil `condition`; the server may still answer them.
    pub(super) fn give_up(
        &mut self,
        condition: impl Fn(&PendingConfirm) -> bool,
    ) -> impl Iterator<Item = PendingConfirm> {
        let given_up = &mut self.given_up;
        self.flights.values_mut().filter_map(move |flight| {
            let taken = flight.pending.take_if(|pending| condition(pending))?;
            *given_up += 1;
            Some(taken)
        })
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = &PendingConfirm> {
        self.flights.values().filter_map(|flight| flight.pending.as_ref())
    }

    /// Messages without an answer.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Whether a suspect is on its way, alone.
    pub(super) fn suspect_in_air(&self) -> bool {
        // A suspect takes off only into empty air, and nothing follows it before its answer.
        self.unanswered == 1
            && self.flights.values().any(|flight| flight.suspect && flight.answer.is_none())
    }

    /// Messages somebody waits for.
    pub(super) fn live(&self) -> usize {
        self.flights.len() - self.given_up
    }

    /// Messages nobody waits for any more and the server has not answered.
    pub(super) fn given_up(&self) -> usize {
        self.given_up
    }
}
