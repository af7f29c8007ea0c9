//! [`Recorder`]: the latencies of one round, each from the time at which its message was due.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::cpu::Stopwatch;
use crate::event::Benched;
use crate::measure::{Round, Unit};
use crate::publish::Publisher;

/// Numbers from here on belong to no round: they show that a consumer is there.
const WARM_UP: usize = 9_000_000_000;
const LIMIT: Duration = Duration::from_secs(120);
/// Nanoseconds; longer latencies count as this one.
const LONGEST: u64 = 120_000_000_000;

/// The figures of a [`Round`] here.
pub(crate) const METRICS: [(&str, Unit); 4] =
    [("p50", Unit::Micros), ("p99", Unit::Micros), ("p99.9", Unit::Micros), ("max", Unit::Micros)];

/// A fixed rate, whatever the answers do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) rate: usize,
    pub(crate) messages: usize,
}

#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Shared>);

#[derive(Default)]
struct Shared {
    round: Mutex<Option<Running>>,
    warm: Notify,
    done: Notify,
}

struct Running {
    start: Instant,
    interval: Duration,
    left: usize,
    nanos: Histogram<u64>,
}

impl Running {
    fn new(start: Instant, pace: Pace) -> Self {
        Self {
            start,
            interval: pace.interval(),
            left: pace.messages,
            nanos: Histogram::new_with_max(LONGEST, 3).expect("a histogram of three digits"),
        }
    }

    fn record(&mut self, number: usize) {
        let latency = (self.start + self.interval * number as u32).elapsed();
        self.nanos.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        self.left -= 1;
    }

    fn micros(&self, share: f64) -> f64 {
        self.nanos.value_at_quantile(share) as f64 / 1e3
    }
}

impl Pace {
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.rate as u32
    }

    /// Sends each message when it is due, or at once if that time has passed, on a thread of its own: timers of a
    /// runtime have a resolution of a millisecond.
    fn send(self, start: Instant, publisher: &impl Publisher, runtime: &Handle) {
        let mut confirms = Vec::with_capacity(self.messages);
        for number in 0..self.messages {
            let due = start + self.interval() * number as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            confirms.push(runtime.block_on(publisher.send(number)));
        }
        for confirm in confirms {
            runtime.block_on(confirm);
        }
    }
}

impl Recorder {
    fn round(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the consumer for each message.
    pub(crate) fn handled(&self, event: &Benched) {
        let number = event.number();
        if number >= WARM_UP {
            self.0.warm.notify_one();
            return;
        }
        if let Some(running) = self.round().as_mut() {
            running.record(number);
            if running.left == 0 {
                self.0.done.notify_one();
            }
        }
    }

    /// Returns when a message goes all the way.
    pub(crate) async fn warm_up(&self, publisher: &impl Publisher) {
        let end = Instant::now() + LIMIT;
        loop {
            publisher.send(WARM_UP).await.await;
            let warm = self.0.warm.notified();
            if tokio::time::timeout(Duration::from_millis(50), warm).await.is_ok() {
                return;
            }
            assert!(Instant::now() < end, "no message arrives within {LIMIT:?}");
        }
    }

    /// Publishes at the pace, and returns the latencies up to the handler.
    pub(crate) async fn measure(&self, publisher: impl Publisher, pace: Pace) -> Round {
        let runtime = Handle::current();
        let stopwatch = Stopwatch::start();
        let start = Instant::now() + Duration::from_millis(10);
        *self.round() = Some(Running::new(start, pace));
        let sending = tokio::task::spawn_blocking(move || pace.send(start, &publisher, &runtime));
        tokio::time::timeout(LIMIT, self.0.done.notified()).await.expect("all messages");
        let elapsed = stopwatch.elapsed();
        sending.await.expect("the sending thread");
        let running = self.round().take().expect("the round that began here");
        Round {
            values: [0.5, 0.99, 0.999, 1.0].map(|share| running.micros(share)).to_vec(),
            cpu_us: Some(elapsed.cpu_us(pace.messages)),
            cores: elapsed.cores(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_counts_from_the_due_time() {
        let second = Duration::from_secs(1);
        let pace = Pace { rate: 1, messages: 2 };
        let mut running = Running::new(Instant::now() - 3 * second, pace);
        running.record(0);
        running.record(2);
        assert_eq!(running.left, 0);
        assert!((1e6..2e6).contains(&running.micros(0.5)), "{}", running.micros(0.5));
        assert!((3e6..4e6).contains(&running.micros(1.0)), "{}", running.micros(1.0));
    }
}
