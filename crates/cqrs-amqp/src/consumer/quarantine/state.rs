//! The state of a source's quarantine over all its channels: lost connections, pauses, refusals.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::consume::LogLimit;
use tokio::time::Instant;

/// The longest that the other messages of a source wait for its suspects, in all.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// The pause of the quarantine after either.
const POSTPONED: Duration = Duration::from_secs(300);
/// The time in which suspects run like others after one could not be stored.
pub(super) const BROKEN: Duration = Duration::from_secs(60);

/// What a source knows of its lost connections and its quarantine, over all channels.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Quarantine {
    /// Connections that the source has lost.
    pub(super) lost: AtomicU32,
    /// Set while a message of the quarantine queue may be in flight.
    pub(super) running: AtomicBool,
    /// Connections lost while a message ran alone.
    pub(super) lost_running: AtomicU32,
    /// Set once the server refused the quarantine queue: the source runs without it.
    off: AtomicBool,
    times: Mutex<Times>,
    pub(super) log: LogLimit,
    pub(super) too_large: LogLimit,
    pub(super) standing_by: LogLimit,
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
    pub(in crate::consumer) fn lost(&self) {
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
    pub(super) fn takes_suspects(&self) -> bool {
        let broken = self.times().broken_until.is_some_and(|until| Instant::now() < until);
        !self.is_off() && !broken
    }

    pub(super) fn set_broken(&self) {
        self.times().broken_until = Some(Instant::now() + BROKEN);
    }

    /// The time that is left for suspects.
    ///
    /// # Errors
    /// None is: when to look again.
    pub(super) fn left(&self) -> Result<Duration, Instant> {
        let mut times = self.times();
        match times.postponed_until {
            Some(until) if Instant::now() < until => return Err(until),
            Some(_over) => (times.postponed_until, times.spent) = (None, Duration::ZERO),
            None => {}
        }
        Ok(PATIENCE.saturating_sub(times.spent))
    }

    /// Pauses the quarantine: when to look again.
    pub(super) fn postpone(&self, subscription: &str) -> Instant {
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
    pub(super) fn seen_empty(&self) {
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
pub(super) struct Spending<'q> {
    pub(super) quarantine: &'q Quarantine,
    pub(super) since: Instant,
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        self.quarantine.times().spent += self.since.elapsed();
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
