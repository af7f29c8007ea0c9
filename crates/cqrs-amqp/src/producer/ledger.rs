use std::collections::VecDeque;

use cqrs_core::broker::PendingConfirm;
use cqrs_core::{Message, PublishErrorKind};
use tokio::time::Instant;

use super::flights::Flights;
pub(crate) use super::flights::Returned;
use crate::AmqpError;

/// All messages of one lane, and what becomes of them. No I/O, no clock: the lane tells it what happened.
///
/// # Invariants
/// * A message that came in with [`push`](Self::push) is either waiting or in the air until it gets its
///   verdict; its place in the window is freed with the verdict.
/// * The order in which messages are written is the order of `push`; those that must be written again
///   come before all that were not written yet, in their old order.
/// * After the server closed a channel, the messages that were on it are suspects: each is written while
///   no other is unanswered. So when the channel closes again it is clear over which one.
pub(crate) struct Ledger {
    waiting: VecDeque<Waiting>,
    air: Flights,
    /// Of the last message written, counted over all channels, never used again.
    number: u64,
    /// Not later than the earliest deadline.
    earliest: Option<Instant>,
}

struct Waiting {
    pending: PendingConfirm,
    suspect: bool,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new(), air: Flights::default(), number: 0, earliest: None }
    }

    pub(crate) fn push(&mut self, pending: PendingConfirm) {
        self.expect(pending.deadline());
        self.waiting.push_back(Waiting { pending, suspect: false });
    }

    /// The next message to write, when one may be written now.
    pub(crate) fn next(&self) -> Option<&Message> {
        let next = self.waiting.front()?;
        let may = match next.suspect {
            true => self.air.unanswered() == 0,
            false => !self.air.suspect_in_air(),
        };
        may.then(|| next.pending.message())
    }

    /// The next message is being written: its number. `None` when its deadline came first; it is gone
    /// then, and `next` is another one.
    pub(crate) fn write_next(&mut self) -> Option<u64> {
        let Waiting { pending, suspect } = self.waiting.pop_front()?;
        if !pending.start_sending() {
            return None;
        }
        self.number += 1;
        self.air.took_off(self.number, pending, suspect);
        Some(self.number)
    }

    /// The next message cannot be written.
    pub(crate) fn refuse_next(
        &mut self,
        kind: PublishErrorKind,
        detail: String,
        source: Option<AmqpError>,
    ) {
        if let Some(Waiting { pending, .. }) = self.waiting.pop_front() {
            pending.fail(kind, detail, source.map(Into::into));
        }
    }

    /// The server answered `number`; lapin attached `returned` to the answer, whosever it is.
    pub(crate) fn answered(&mut self, number: u64, ack: bool, returned: Option<Returned>) {
        self.air.answered(number, ack, returned);
    }

    /// The answers so far have no gap: settles what is certain now.
    pub(crate) fn cut(&mut self) {
        self.air.cut();
    }

    /// The connection was lost: what is not settled is written again.
    pub(crate) fn lost(&mut self) {
        self.again(false);
    }

    /// The server closed the channel over something on it. If only one message can be the reason, that
    /// one gets the server's words; otherwise all become suspects.
    pub(crate) fn closed(&mut self, error: &AmqpError) {
        self.air.cut();
        let known = self.air.unanswered() == 1;
        if known && let Some(culprit) = self.air.take_only_unanswered() {
            let detail = format!("the server closed the channel over it: {}", error.chain());
            culprit.fail(error.verdict(), detail, Some(error.clone().into()));
        }
        self.again(!known);
    }

    /// The server closed the channel for a reason that is gone now: nobody is blamed yet, but all that
    /// was on it are suspects.
    pub(crate) fn closed_by_nobody(&mut self) {
        self.air.cut();
        self.again(true);
    }

    fn again(&mut self, suspect: bool) {
        for again in self.air.crash(suspect).into_iter().rev() {
            let (pending, suspect) = (again.pending, again.suspect);
            self.waiting.push_front(Waiting { pending, suspect });
        }
    }

    /// When [`expire`](Self::expire) has to be called next, or earlier.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.earliest
    }

    /// Ends the messages whose deadline has passed; how many.
    pub(crate) fn expire(&mut self, now: Instant) -> usize {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return 0;
        }
        let late = |pending: &PendingConfirm| pending.deadline() <= now;
        let mut expired: Vec<_> = self.air.give_up(late).collect();
        let (gone, kept): (VecDeque<_>, _) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| late(&w.pending));
        self.waiting = kept;
        expired.extend(gone.into_iter().map(|waiting| waiting.pending));
        let count = expired.len();
        for pending in expired {
            // The cause comes from the intake.
            pending.expire(None);
        }
        self.earliest = None;
        let left = self.waiting.iter().map(|w| &w.pending).chain(self.air.pending());
        self.earliest = left.map(PendingConfirm::deadline).min();
        count
    }

    /// Ends all messages now, because the broker value shuts down; how many.
    pub(crate) fn abandon(&mut self) -> usize {
        let mut all: Vec<_> = self.air.give_up(|_| true).collect();
        all.extend(self.waiting.drain(..).map(|waiting| waiting.pending));
        self.earliest = None;
        let count = all.len();
        for pending in all {
            match pending.is_sent() {
                true => {
                    let detail = "the broker value was shut down before its confirm came";
                    pending.fail(PublishErrorKind::Unknown, detail, None);
                }
                false => {
                    let detail = "the broker value was shut down before it was sent";
                    pending.fail(PublishErrorKind::Closed, detail, None);
                }
            }
        }
        count
    }

    fn expect(&mut self, deadline: Instant) {
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
    }

    /// Whether nobody waits for anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.air.live() == 0
    }

    /// Messages that expired in the air and were never answered: each keeps a little memory.
    pub(crate) fn given_up(&self) -> usize {
        self.air.given_up()
    }
}
