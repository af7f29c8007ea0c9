//! One channel's run of the quarantine: it stores suspects and runs them alone; used by the session.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::look::count;
use super::state::{BROKEN, Spending};
use crate::connect::topology::short;
use crate::consumer::arrived::Arrived;
use crate::consumer::context::Desk;
use crate::consumer::copies::{Missing, Published, Target};
use crate::consumer::copy;
use crate::consumer::delivery_count::DeliveryCount;
use crate::consumer::generation::Generation;
use crate::consumer::in_flight::InFlight;
use crate::consumer::inbound::Inbound;
use crate::{AmqpError, ErrorKind};

/// The longest that a source waits for others of which none runs.
const STALLED: Duration = Duration::from_secs(10);
/// How often the source looks for messages that another process left in a quarantine queue.
pub(in crate::consumer) const LOOK: Duration = Duration::from_secs(10);
/// The time to the next look while a message of another source runs alone.
const BUSY: Duration = Duration::from_secs(3);

/// The message of this process that runs alone.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Whether a delivery of a consumer has to go through the quarantine.
pub(in crate::consumer) fn is_suspect(arrived: &Arrived, desk: &Desk) -> bool {
    let state = &desk.quarantine;
    desk.plan.quarantine_name(arrived.queue).is_some()
        && DeliveryCount::of(&arrived.original).is_suspect(state.lost.load(Ordering::Relaxed))
        && state.takes_suspects()
}

/// One channel's way into the quarantine and out of it.
pub(in crate::consumer) struct Session {
    pub(in crate::consumer) channel: Arc<lapin::Channel>,
    pub(in crate::consumer) generation: Arc<Generation>,
    pub(in crate::consumer) desk: Arc<Desk>,
    pub(in crate::consumer) inbound: Arc<Inbound>,
    /// For each queue, whether this channel may run what is in its quarantine.
    pub(in crate::consumer) may_run: Vec<bool>,
}

/// How the run of a quarantine queue ended.
enum Drained {
    Empty {
        ran: bool,
    },
    /// A message of another source runs alone.
    Busy,
    /// Other messages of the source, or the one that runs alone, took too long.
    TimeUp,
}

impl Session {
    /// Quarantines `suspect`, if there is one, and runs what is in the quarantine queues, unless that is
    /// postponed. When to look at them next.
    pub(in crate::consumer) async fn run(
        self,
        suspect: Option<Box<Arrived>>,
    ) -> Result<Instant, AmqpError> {
        let state = &self.desk.quarantine;
        let mut is_empty = suspect.is_none();
        let spending = Spending { quarantine: state, since: Instant::now() };
        if let Some(suspect) = suspect
            && !self.store(&suspect, 0).await
        {
            self.inbound.push(suspect);
        }
        let end = match state.left() {
            Ok(left) => spending.since + left,
            Err(until) => return Ok(until),
        };
        for index in 0..self.desk.plan.queues.len() {
            match self.drain(index, end).await? {
                Drained::Empty { ran } => is_empty &= !ran,
                Drained::Busy => return Ok(Instant::now() + BUSY),
                Drained::TimeUp => return Ok(state.postpone(&self.desk.plan.name)),
            }
        }
        drop(spending);
        if is_empty {
            state.seen_empty();
        }
        Ok(Instant::now() + LOOK)
    }

    /// Stores a copy of `arrived` with so many crashes in the quarantine queue, then acks it. Cut off between
    /// the two, both are handled. False: it is not stored.
    async fn store(&self, arrived: &Arrived, crashes: u32) -> bool {
        let (plan, state) = (&self.desk.plan, &self.desk.quarantine);
        let Some(queue) = plan.queues.get(arrived.queue) else { return false };
        let Some(quarantine) = queue.quarantine.clone() else { return false };
        let (name, target) = (&plan.name, Target { queue: quarantine, missing: Missing::Ensure });
        let properties = copy::quarantine(&arrived.original, crashes);
        let stored = self.desk.copies.publish(&target, &properties, &arrived.original.body).await;
        match stored {
            Ok(Published::Stored) => {}
            Ok(Published::TooLarge(error)) => {
                if let Some(left_out) = state.too_large.line() {
                    tracing::warn!(
                        subscription = %name, error = %error.chain(), left_out,
                        "a redelivered message is too large for its quarantine queue: it runs like \
                         others, its crashes are not counted"
                    );
                }
                return false;
            }
            Err(error) => {
                state.set_broken();
                tracing::warn!(
                    subscription = %name, error = %error.chain(),
                    "the quarantine queue takes no message: for {BROKEN:?} messages that came back from \
                     lost consumers run like others, their crashes are not counted"
                );
                return false;
            }
        }
        // If the channel is gone, the original is redelivered beside its copy.
        let _or_void = arrived.acker.ack(BasicAckOptions::default()).await;
        true
    }

    /// Runs the messages of one quarantine queue alone, one after the other, until it is empty or `end`.
    async fn drain(&self, index: usize, end: Instant) -> Result<Drained, AmqpError> {
        let (plan, state) = (&self.desk.plan, &self.desk.quarantine);
        let may_run = self.may_run.get(index).copied().unwrap_or(false);
        let Some(name) = plan.quarantine_name(index).filter(|_| !state.is_off()) else {
            return Ok(Drained::Empty { ran: false });
        };
        let waiting = self.waiting(name).await?;
        if waiting > 0
            && !may_run
            && let Some(left_out) = state.standing_by.line()
        {
            tracing::warn!(
                subscription = %plan.name, queue = name, messages = waiting, left_out,
                "messages in quarantine wait for the active consumer of the queue: this one takes them \
                 after the queue has delivered a message to it; if no other consumer is active, restart it"
            );
        }
        if waiting == 0 || !may_run {
            return Ok(Drained::Empty { ran: false });
        }
        let Ok(_alone) = ALONE.try_lock() else { return Ok(Drained::Busy) };
        let _others_wait = self.inbound.hold();
        loop {
            if !others_end(&self.desk.handed_on, &self.desk.running, end).await {
                return Ok(Drained::TimeUp);
            }
            // From here on the server may have handed out a message, whether it arrives here or not.
            state.running.store(true, Ordering::Relaxed);
            let got = self.get(name).await?;
            let got = got.and_then(|got| Arrived::new(index, got, &self.generation, &self.desk));
            let Some(mut arrived) = got else {
                state.running.store(false, Ordering::Relaxed);
                return Ok(Drained::Empty { ran: true });
            };
            let count = DeliveryCount::of(&arrived.original);
            let lost = state.lost_running.swap(0, Ordering::Relaxed);
            arrived.crashes = count.crashes(lost);
            // The copy starts with a count of 0: so a later process does not count the loss either.
            if lost > 0 && count.returned > 0 && self.store(&arrived, arrived.crashes).await {
                continue;
            }
            (arrived.redelivered, arrived.alone) = (true, true);
            if let Some(left_out) = state.log.line() {
                tracing::info!(
                    subscription = %plan.name, queue = name, crashes = arrived.crashes, left_out,
                    "a message that came back from lost consumers runs alone"
                );
            }
            arrived.sent = Some(self.desk.handed_on.add());
            self.inbound.push_alone(arrived);
            if timeout_at(end, self.desk.handed_on.none()).await.is_err() {
                return Ok(Drained::TimeUp);
            }
            state.running.store(false, Ordering::Relaxed);
        }
    }

    async fn waiting(&self, queue: &str) -> Result<u32, AmqpError> {
        let count = count(&self.channel, queue).await;
        count.map_err(|error| self.failed("looking at", queue, &error))
    }

    async fn get(&self, queue: &str) -> Result<Option<Delivery>, AmqpError> {
        let got = self.channel.basic_get(short(queue)?, BasicGetOptions::default()).await;
        got.map(|message| message.map(|message| message.delivery))
            .map_err(|error| self.failed("taking a message from", queue, &error))
    }

    fn failed(&self, doing: &str, queue: &str, error: &lapin::Error) -> AmqpError {
        let (state, name) = (&self.desk.quarantine, &self.desk.plan.name);
        let kind = match state.is_refused(queue, name, error) || error.is_amqp_error() {
            true => ErrorKind::Topology,
            false => ErrorKind::ConnectionLost,
        };
        AmqpError::from_lapin(kind, format!("{doing} queue {queue:?}"), error)
    }
}

/// Waits until the runtime has no other message to run. False at `end`, or before that if nothing runs and
/// none of the others was settled for [`STALLED`]: they wait for a key that is held.
async fn others_end(handed_on: &InFlight, running: &InFlight, end: Instant) -> bool {
    loop {
        let (before, until) = (handed_on.count(), end.min(Instant::now() + STALLED));
        let none_left = timeout_at(until, handed_on.none()).await.is_ok();
        if Instant::now() >= end {
            return false;
        }
        if none_left {
            return true;
        }
        if running.count() == 0 && handed_on.count() >= before {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::PATIENCE;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn others_that_cannot_run_are_waited_for_10_s() {
        let (handed_on, running, start) = (InFlight::new(), InFlight::new(), Instant::now());
        let end = start + PATIENCE;
        assert!(others_end(&handed_on, &running, end).await);
        let held_key = handed_on.add();
        assert!(!others_end(&handed_on, &running, end).await);
        assert_eq!(start.elapsed(), STALLED);
        let runs = running.add();
        let ending = async {
            tokio::time::sleep(STALLED * 3).await;
            drop((held_key, runs));
        };
        let (ended, ()) = tokio::join!(others_end(&handed_on, &running, end), ending);
        assert!(ended, "a slow handler is waited for");
        assert_eq!(start.elapsed(), STALLED * 4);
        let _runs = (handed_on.add(), running.add());
        assert!(!others_end(&handed_on, &running, end).await);
        assert_eq!(start.elapsed(), PATIENCE);
    }
}
