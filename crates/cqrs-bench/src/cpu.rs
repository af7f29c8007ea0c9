//! The time on the clock and the processor time of this process and of the machine, taken together.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A moment: started when the first message is due or seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch {
    wall: Instant,
    cpu: Duration,
    machine: Option<Duration>,
}

/// What passed since a [`Stopwatch`] was started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elapsed {
    pub(crate) wall: Duration,
    /// Processor time of all threads of the process, those of the clients included.
    pub(crate) cpu: Duration,
    /// The same of all processes of the machine, the servers included. `None` if the system does not tell.
    pub(crate) machine: Option<Duration>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { machine: machine_time(), wall: Instant::now(), cpu: process_time() }
    }

    pub(crate) fn elapsed(&self) -> Elapsed {
        let (wall, cpu) = (self.wall.elapsed(), process_time().saturating_sub(self.cpu));
        let machine = machine_time().zip(self.machine);
        Elapsed { wall, cpu, machine: machine.map(|(now, then)| now.saturating_sub(then)) }
    }
}

impl Elapsed {
    /// Microseconds of processor time for each of `count` messages.
    pub(crate) fn cpu_us(&self, count: usize) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count as f64
    }

    /// How many processors of the machine were busy.
    pub(crate) fn cores(&self) -> Option<f64> {
        Some(self.machine?.as_secs_f64() / self.wall.as_secs_f64())
    }
}

fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn machine_time() -> Option<Duration> {
    busy(&std::fs::read_to_string("/proc/stat").ok()?)
}

/// The time in which processors were not idle, from the first line of `/proc/stat` (proc_stat(5)): user, nice, system,
/// idle, iowait, irq, softirq, steal, in hundredths of a second.
fn busy(stat: &str) -> Option<Duration> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let mut next = || fields.next()?.parse::<u64>().ok();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal] =
        [next()?, next()?, next()?, next()?, next()?, next()?, next()?, next()?];
    Some(Duration::from_millis(10 * (user + nice + system + irq + softirq + steal)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_processors_are_not_busy() {
        let stat = "cpu  10 20 30 1000 2000 1 2 3 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n";
        assert_eq!(busy(stat), Some(Duration::from_millis(660)));
        assert_eq!(busy("cpu0 1 2 3"), None);
    }
}
