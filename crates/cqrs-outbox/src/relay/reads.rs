//! The times of a relay's reads: the poll, the idle poll and the sweep; used by its driver.

use std::time::Duration;

use super::settings::Settings;

/// Reads in a row without a row, after which the relay polls less often.
const IDLE_AFTER: u32 = 8;

/// A sweep takes at most one part in so many of the relay's time.
const SWEEP_SHARE: u32 = 20;

/// Times are since the start of the relay.
#[derive(Debug)]
pub(super) struct ReadTimes {
    poll: Duration,
    idle_poll: Duration,
    sweep: Duration,
    poll_at: Duration,
    sweep_at: Duration,
    started_at: Duration,
    is_sweeping: bool,
    /// Reads in a row that found nothing.
    empty: u32,
}

/// The reason of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadCause {
    Sweep,
    Poll,
    /// Nothing is due: a read looks only where rows are known to be.
    Known,
}

impl ReadTimes {
    pub(super) fn new(settings: &Settings) -> Self {
        let Settings { poll, idle_poll, sweep, .. } = *settings;
        Self {
            poll,
            idle_poll,
            sweep,
            poll_at: Duration::ZERO,
            sweep_at: sweep,
            started_at: Duration::ZERO,
            is_sweeping: false,
            empty: 0,
        }
    }

    /// The time of the next read that nothing else asks for.
    pub(super) fn next(&self) -> Duration {
        self.poll_at.min(self.sweep_at)
    }

    /// A read starts.
    pub(super) fn start(&mut self, now: Duration) -> ReadCause {
        self.started_at = now;
        let is_polling = now >= self.poll_at;
        if is_polling {
            let is_idle = self.empty > IDLE_AFTER;
            self.poll_at = now.saturating_add(if is_idle { self.idle_poll } else { self.poll });
        }
        if now >= self.sweep_at {
            self.is_sweeping = true;
            self.sweep_at = now.saturating_add(self.sweep);
            return ReadCause::Sweep;
        }
        if is_polling { ReadCause::Poll } else { ReadCause::Known }
    }

    /// A hot read found so many rows.
    pub(super) fn found(&mut self, rows: usize) {
        self.empty = if rows == 0 { self.empty.saturating_add(1) } else { 0 };
    }

    /// The read ended. A sweep of a table that is slow to read must not fill the relay's time.
    pub(super) fn end(&mut self, now: Duration) {
        if std::mem::take(&mut self.is_sweeping) {
            let took = now.saturating_sub(self.started_at);
            self.sweep_at = now.saturating_add(self.sweep.max(took.saturating_mul(SWEEP_SHARE)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn poll_slows_down_while_nothing_is_found() {
        let mut times = ReadTimes::new(&Settings::default());
        let mut now = Duration::ZERO;
        for _ in 0..9 {
            assert_eq!(times.start(now), ReadCause::Poll);
            times.found(0);
            assert_eq!(times.next(), now + Duration::from_millis(250));
            now = times.next();
        }
        assert_eq!(times.start(now), ReadCause::Poll);
        assert_eq!(times.next(), now + seconds(1));
        assert_eq!(times.start(now), ReadCause::Known, "before the poll");
        times.found(1);
        now = times.next();
        times.start(now);
        assert_eq!(times.next(), now + Duration::from_millis(250));
    }

    #[test]
    fn slow_sweep_takes_a_share_of_the_time() {
        let mut times = ReadTimes::new(&Settings::default());
        assert_eq!(times.start(seconds(30)), ReadCause::Sweep);
        times.end(seconds(31));
        assert_eq!(times.start(seconds(60)), ReadCause::Poll);
        times.end(seconds(60));
        assert_eq!(times.start(seconds(61)), ReadCause::Sweep, "30 s after the end of a fast one");
        times.end(seconds(71));
        assert_eq!(times.start(seconds(270)), ReadCause::Poll);
        assert_eq!(times.start(seconds(271)), ReadCause::Sweep, "20 times as long as it took");
    }
}
