//! The time on the clock and the processor time of this process, taken together.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A moment: started when the first message is due or seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

/// What passed since a [`Stopwatch`] was started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elapsed {
    pub(crate) wall: Duration,
    /// Processor time of all threads of the process, those of the clients included.
    pub(crate) cpu: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { wall: Instant::now(), cpu: process_time() }
    }

    pub(crate) fn elapsed(&self) -> Elapsed {
        Elapsed { wall: self.wall.elapsed(), cpu: process_time().saturating_sub(self.cpu) }
    }
}

impl Elapsed {
    /// Microseconds of processor time for each of `count` messages.
    pub(crate) fn cpu_us(&self, count: usize) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count as f64
    }
}

fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
