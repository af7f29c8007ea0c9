//! The quarantine of a source: messages that may have killed their process run alone, one at a time.
//!
//! A message that came back twice from lost consumers is a suspect. The server counts every message that
//! was prefetched, so that its count proves nothing. The source moves a suspect into the quarantine queue
//! (`{queue}.quarantine`): a confirmed copy, then an ack. From there messages are taken one by one, each only
//! when the runtime has no other, and no other is handed to the runtime until it is settled. So what the
//! server counts *in that queue* are deaths while the message ran alone, over any number of processes, and
//! lost connections, which the source that lost them subtracts.
//!
//! One message per process runs alone at a time. A source that finds another one's running goes on and looks
//! again a few seconds later. The other messages of a source wait for its suspects 60 s in all, or 10 s when
//! none of them runs; then its quarantine pauses for five minutes, in which suspects stay in their queue.
//!
//! A message that the runtime holds to try it later does not keep suspects waiting. So it may run beside one:
//! a process that it kills then counts for both, until it is a suspect itself.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use cqrs_core::consume::LogLimit;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::arrived::Arrived;
use super::copies::{Missing, Published, Target};
use super::copy;
use super::delivery_count::DeliveryCount;
use super::generation::Generation;
use super::in_flight::InFlight;
use super::inbound::Inbound;
use super::look::count;
use super::settle::Desk;
use crate::connect::topology::short;
use crate::{AmqpError, ErrorKind};

/// The longest that the other messages of a source wait for its suspects, in all.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest that a source waits for others of which none runs.
const STALLED: Duration = Duration::from_secs(10);
/// The pause of the quarantine after either.
const POSTPONED: Duration = Duration::from_secs(300);
/// How often the source looks for messages that another process left in a quarantine queue.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// The time to the next look while a message of another source runs alone.
const BUSY: Duration = Duration::from_secs(3);
/// The time in which suspects run like others after one could not be stored.
const BROKEN: Duration = Duration::from_secs(60);

/// The message of this process that runs alone.
static ALONE: Mutex<()> = Mutex::const_new(());

/// What a source knows of its lost connections and its quarantine, over all channels.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// Connections that the source has lost.
    lost: AtomicU32,
    /// Set while a message of the quarantine queue may be in flight.
    running: AtomicBool,
    /// Connections lost while a message ran alone.
    lost_running: AtomicU32,
    /// Set once the server refused the quarantine queue: the source runs without it.
    off: AtomicBool,
    times: StdMutex<Times>,
    log: LogLimit,
    too_large: LogLimit,
    standing_by: LogLimit,
}

#[derive(Debug, Default)]
struct Times {
    /// How long other messages waited, since the quarantine was last seen empty.
    spent: Duration,
    postponed_until: Option<Instant>,
    /// Postponements since then.
    postponed: u32,
    /// Until then the quarantine queue takes no messages: suspects run like others.
    broken_until: Option<Instant>,
}

impl Quarantine {
    /// A channel was lost, and all its deliveries came back.
    pub(super) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        if self.running.swap(false, Ordering::Relaxed) {
            self.lost_running.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// Whether suspects are moved into the quarantine queue.
    fn takes_suspects(&self) -> bool {
        let broken = self.times().broken_until.is_some_and(|until| Instant::now() < until);
        !self.is_off() && !broken
    }

    fn set_broken(&self) {
        self.times().broken_until = Some(Instant::now() + BROKEN);
    }

    /// The time that is left for suspects.
    ///
    /// # Errors
    /// None is: when to look again.
    fn left(&self) -> Result<Duration, Instant> {
        let mut times = self.times();
        match times.postponed_until {
            Some(until) if Instant::now() < until => return Err(until),
            Some(_over) => (times.postponed_until, times.spent) = (None, Duration::ZERO),
            None => {}
        }
        Ok(PATIENCE.saturating_sub(times.spent))
    }

    /// Pauses the quarantine: when to look again.
    fn postpone(&self, subscription: &str) -> Instant {
        let mut times = self.times();
        times.postponed += 1;
        let (count, until) = (times.postponed, Instant::now() + POSTPONED);
        times.postponed_until = Some(until);
        drop(times);
        if count > 1 {
            tracing::warn!(
                subscription,
                postponed = count,
                "messages in quarantine wait: handlers run for longer than {PATIENCE:?}, or a key is held; \
                 tried again in {POSTPONED:?}"
            );
        }
        until
    }

    /// All quarantine queues were empty.
    fn seen_empty(&self) {
        let mut times = self.times();
        (times.spent, times.postponed) = (Duration::ZERO, 0);
    }

    /// Whether `error` is the server's refusal of the quarantine queue. From the first one on the source runs
    /// without it.
    pub(super) fn is_refused(&self, queue: &str, subscription: &str, error: &lapin::Error) -> bool {
        // 406 is about a delivery of the channel (the consumer timeout), a hard error about the connection.
        let is_refused = match error.kind() {
            lapin::ErrorKind::ProtocolError(reply) => {
                error.is_amqp_soft_error() && reply.get_id() != 406
            }
            _ => false,
        };
        if is_refused && !self.off.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                subscription, queue, %error,
                "the server refuses the quarantine queue: until the next start this subscription runs \
                 without it and counts no crashes; grant the user configure and read on the queue"
            );
        }
        is_refused
    }
}

/// Adds up how long other messages wait, until it is dropped.
struct Spending<'q> {
    quarantine: &'q Quarantine,
    since: Instant,
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        self.quarantine.times().spent += self.since.elapsed();
    }
}

/// Whether a delivery of a consumer has to go through the quarantine.
pub(super) fn is_suspect(arrived: &Arrived, desk: &Desk) -> bool {
    let state = &desk.quarantine;
    desk.plan.quarantine_name(arrived.queue).is_some()
        && DeliveryCount::of(&arrived.original).is_suspect(state.lost.load(Ordering::Relaxed))
        && state.takes_suspects()
}

/// One channel's way into the quarantine and out of it.
pub(super) struct Session {
    pub(super) channel: Arc<lapin::Channel>,
    pub(super) generation: Arc<Generation>,
    pub(super) desk: Arc<Desk>,
    pub(super) inbound: Arc<Inbound>,
    /// For each queue, whether this channel may run what is in its quarantine.
    pub(super) may_run: Vec<bool>,
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
    pub(super) async fn run(self, suspect: Option<Box<Arrived>>) -> Result<Instant, AmqpError> {
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
    use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn others_wait_60_s_in_all() {
        let quarantine = Quarantine::default();
        for _ in 0..3 {
            let spending = Spending { quarantine: &quarantine, since: Instant::now() };
            tokio::time::advance(Duration::from_secs(20)).await;
            drop(spending);
            quarantine.lost();
        }
        assert_eq!(quarantine.left(), Ok(Duration::ZERO));
        let until = quarantine.postpone("s");
        assert_eq!(quarantine.left(), Err(until));
        tokio::time::advance(POSTPONED).await;
        assert_eq!(quarantine.left(), Ok(PATIENCE));
        assert_eq!(quarantine.times().postponed, 1);
        quarantine.seen_empty();
        assert_eq!(quarantine.times().postponed, 0);
    }

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

    #[tokio::test(start_paused = true)]
    async fn failed_store_stops_the_quarantine_for_a_while() {
        let quarantine = Quarantine::default();
        quarantine.set_broken();
        quarantine.lost();
        assert!(!quarantine.takes_suspects());
        tokio::time::advance(BROKEN).await;
        assert!(quarantine.takes_suspects());
    }

    #[test]
    fn refusal_switches_off_until_the_next_start() {
        let reply =
            |kind| lapin::ErrorKind::ProtocolError(AMQPError::new(kind, "no".into())).into();
        let quarantine = Quarantine::default();
        for other in [
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED),
            AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED),
        ] {
            assert!(!quarantine.is_refused("q", "s", &reply(other)) && !quarantine.is_off());
        }
        let refused = reply(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED));
        assert!(quarantine.is_refused("q", "s", &refused));
        quarantine.lost();
        assert!(quarantine.is_off() && !quarantine.takes_suspects());
    }
}
