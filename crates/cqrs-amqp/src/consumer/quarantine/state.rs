//! The state of a source's quarantine over all channels: lost connections, pauses, refusals.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::consume::LogLimit;
use tokio::time::Instant;

/// The longest time that the other messages of a source wait for quarantined ones, in all.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(60);
/// The pause of the quarantine after a wait that was too long.
const POSTPONED: Duration = Duration::from_secs(300);
/// The time in which no message is quarantined after one could not be stored.
pub(super) const UNAVAILABLE: Duration = Duration::from_secs(60);

/// The quarantine state of a source, over all channels.
#[derive(Debug, Default)]
pub(in crate::consumer) struct QuarantineState {
    /// Connections that the source has lost.
    pub(super) lost: AtomicU32,
    /// Set while a message of the quarantine queue may be in flight.
    pub(super) running: AtomicBool,
    /// Connections lost while a quarantined message ran.
    pub(super) lost_running: AtomicU32,
    /// Set after the server refused the quarantine queue: the source runs without it.
    off: AtomicBool,
    times: Mutex<Times>,
    pub(super) log: LogLimit,
    pub(super) too_large: LogLimit,
    pub(super) standing_by: LogLimit,
}

#[derive(Debug, Default)]
struct Times {
    /// The time for which other messages waited since the quarantine was last empty.
    waited: Duration,
    postponed_until: Option<Instant>,
    /// Postponements since then.
    postponed: u32,
    /// Until then no message is quarantined.
    unavailable_until: Option<Instant>,
}

impl QuarantineState {
    /// Records a lost channel: all its deliveries were returned.
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

    /// True if messages are moved into the quarantine queue.
    pub(super) fn takes_messages(&self) -> bool {
        let unavailable =
            self.times().unavailable_until.is_some_and(|until| Instant::now() < until);
        !self.is_off() && !unavailable
    }

    pub(super) fn set_unavailable(&self) {
        self.times().unavailable_until = Some(Instant::now() + UNAVAILABLE);
    }

    /// The time that is left for quarantined messages.
    ///
    /// # Errors
    /// The end of the pause, if none is left.
    pub(super) fn time_left(&self) -> Result<Duration, Instant> {
        let mut times = self.times();
        match times.postponed_until {
            Some(until) if Instant::now() < until => return Err(until),
            Some(_over) => (times.postponed_until, times.waited) = (None, Duration::ZERO),
            None => {}
        }
        Ok(MAX_WAIT.saturating_sub(times.waited))
    }

    /// Pauses the quarantine and returns the end of the pause.
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
                "messages in quarantine wait: handlers run for longer than {MAX_WAIT:?}, or a key is held; \
                 tried again in {POSTPONED:?}"
            );
        }
        until
    }

    /// Records that all quarantine queues were empty.
    pub(super) fn seen_empty(&self) {
        let mut times = self.times();
        (times.waited, times.postponed) = (Duration::ZERO, 0);
    }

    /// True if `error` is the server's refusal of the quarantine queue. After the first one the source runs
    /// without that queue.
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

/// Adds the time for which other messages wait, until it is dropped.
pub(super) struct WaitTimer<'q> {
    pub(super) quarantine: &'q QuarantineState,
    pub(super) since: Instant,
}

impl Drop for WaitTimer<'_> {
    fn drop(&mut self) {
        self.quarantine.times().waited += self.since.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn other_messages_wait_60_s_in_all() {
        let quarantine = QuarantineState::default();
        for _ in 0..3 {
            let timer = WaitTimer { quarantine: &quarantine, since: Instant::now() };
            tokio::time::advance(Duration::from_secs(20)).await;
            drop(timer);
            quarantine.lost();
        }
        assert_eq!(quarantine.time_left(), Ok(Duration::ZERO));
        let until = quarantine.postpone("s");
        assert_eq!(quarantine.time_left(), Err(until));
        tokio::time::advance(POSTPONED).await;
        assert_eq!(quarantine.time_left(), Ok(MAX_WAIT));
        assert_eq!(quarantine.times().postponed, 1);
        quarantine.seen_empty();
        assert_eq!(quarantine.times().postponed, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_store_stops_the_quarantine_for_a_while() {
        let quarantine = QuarantineState::default();
        quarantine.set_unavailable();
        quarantine.lost();
        assert!(!quarantine.takes_messages());
        tokio::time::advance(UNAVAILABLE).await;
        assert!(quarantine.takes_messages());
    }

    #[test]
    fn refusal_switches_off_until_the_next_start() {
        let reply =
            |kind| lapin::ErrorKind::ProtocolError(AMQPError::new(kind, "no".into())).into();
        let quarantine = QuarantineState::default();
        for other in [
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED),
            AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED),
        ] {
            assert!(!quarantine.is_refused("q", "s", &reply(other)) && !quarantine.is_off());
        }
        let refused = reply(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED));
        assert!(quarantine.is_refused("q", "s", &refused));
        quarantine.lost();
        assert!(quarantine.is_off() && !quarantine.takes_messages());
    }
}
