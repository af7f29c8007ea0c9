//! Messages whose retry copy or dead letter the broker refuses for good, held by the subscription's runner.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::HELD_BACKOFF;
use super::backoff::Backoff;
use super::failure::causes;
use super::job::Job;
use super::repeats::{Logged, log_first};
use super::runner::{End, Runner};
use super::settle::ack;
use super::state::Held;
use crate::broker::far_deadline;
use crate::consume::{DeadLetter, Delayed, SettleError};

/// How many held messages are named in error lines in a period of the log; further ones are counted.
const NAMED_PER_PERIOD: u64 = 10;

/// What is refused.
pub(super) enum Refused {
    DeadLetter(Box<DeadLetter>),
    RetryCopy(Duration),
}

/// A refused settlement. Its message and the key of that wait; no worker does.
pub(super) struct HeldSettlement {
    what: Refused,
    backoff: Backoff,
    /// Health names the message as long as this lives.
    shown: Held,
}

impl Runner {
    /// Holds a job whose settlement retrying cannot fix. An error line names it, or counts it beside
    /// [`NAMED_PER_PERIOD`] others.
    pub(super) fn hold_refused(&self, job: Job, what: Refused, error: &SettleError) -> End {
        let of = match what {
            Refused::DeadLetter(_) => "dead letter",
            Refused::RetryCopy(_) => "retry copy",
        };
        let (message, cause) = (&job.message, causes(error));
        let place = match (message.partition, message.offset) {
            (Some(partition), Some(offset)) => {
                format!("{} [{partition}] at offset {offset}", message.topic)
            }
            _ => message.topic.to_string(),
        };
        let reason: Arc<str> =
            format!("{place}: the broker refuses its {of}, so it and its key are held: {cause}")
                .into();
        log_first!(
            self.watched.repeats.is_among_first(NAMED_PER_PERIOD, Logged::Refused, of),
            error,
            subscription = %self.watched.name,
            topic = %message.topic,
            partition = message.partition,
            offset = message.offset,
            id = message.id.as_deref(),
            error = cause,
            "the broker refuses the {of} of a message: it and its key are held, the others go on"
        );
        let shown = self.watched.hold(reason);
        let backoff = Backoff::new(HELD_BACKOFF.0, HELD_BACKOFF.1);
        keep(job, HeldSettlement { what, backoff, shown })
    }

    /// Tries to settle a held job again.
    pub(super) async fn settle_held(&self, mut job: Job, held: HeldSettlement) -> End {
        let settled = match &held.what {
            Refused::DeadLetter(letter) => job.settle.dead_letter(letter).await.map(|()| None),
            Refused::RetryCopy(delay) => {
                let delayed = job.settle.retry_later(*delay, &job.retry).await;
                delayed.map(|delayed| Some((delayed, *delay)))
            }
        };
        let Ok(settled) = settled else { return keep(job, held) };
        drop(held.shown);
        match settled {
            None => ack(job, |counters| &counters.dead_lettered).await,
            Some((Delayed::Scheduled, _)) => ack(job, |counters| &counters.rescheduled).await,
            Some((Delayed::Hold, delay)) => End::Hold(job, far_deadline(delay)),
        }
    }
}

fn keep(mut job: Job, mut held: HeldSettlement) -> End {
    let until = Instant::now() + held.backoff.next();
    // A revoke does not wait for what is held.
    job.settle.rest();
    job.held = Some(Box::new(held));
    End::Hold(job, until)
}
