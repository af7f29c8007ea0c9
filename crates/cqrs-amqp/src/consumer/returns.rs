use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use lapin::Acker;
use lapin::options::BasicNackOptions;
use tokio::time::Instant;

use super::generation::{Again, Generation, Returned};

/// The wait before a dropped delivery goes back, and its limit.
const PACE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Deliveries on their way back to the queue of one line.
///
/// They wait a little, because the server hands them out again at once: longer each time, as long as
/// nothing is acknowledged in between.
pub(super) struct Returns {
    generation: Arc<Generation>,
    waiting: Vec<Returned>,
    due: Option<Instant>,
    pace: Duration,
    /// Acknowledgements seen at the last time.
    acked: u64,
}

impl Returns {
    pub(super) fn new(generation: Arc<Generation>) -> Self {
        Self { generation, waiting: Vec::new(), due: None, pace: PACE.0, acked: 0 }
    }

    pub(super) fn push(&mut self, returned: Returned) {
        self.waiting.push(returned);
        if self.due.is_none() {
            self.due = Some(Instant::now() + self.pace);
        }
    }

    /// When those that wait go back.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Gives back all that wait, in the order they came, so that they come again in it. Waits for
    /// nothing: should the channel go, they are given back by that.
    pub(super) fn give_back(&mut self, mut hand_out: impl FnMut(u64, Acker, Again)) {
        let acked = self.generation.acked();
        self.pace = match acked > self.acked {
            true => PACE.0,
            false => (self.pace * 2).min(PACE.1),
        };
        (self.acked, self.due) = (acked, None);
        self.waiting.sort_by_key(|returned| returned.tag);
        for Returned { tag, acker, again } in self.waiting.drain(..) {
            if let Some(again) = again {
                hand_out(tag, acker, again);
                continue;
            }
            let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            // The first poll hands it to lapin.
            let _written_or_void = acker.nack(options).now_or_never();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(tag: u64) -> Returned {
        let again = None;
        let delivery = lapin::message::Delivery::mock(tag, "".into(), "".into(), false, Vec::new());
        Returned { tag, acker: delivery.acker, again }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_grows_until_something_is_acknowledged() {
        let (generation, _returned) = Generation::new();
        let mut returns = Returns::new(Arc::clone(&generation));
        assert_eq!(returns.due(), None);
        let mut waits = Vec::new();
        for round in 0..9 {
            if round == 8 {
                generation.count_ack();
            }
            let now = Instant::now();
            returns.push(returned(2));
            returns.push(returned(1));
            waits.push((returns.due().unwrap() - now).as_millis());
            returns.give_back(|_, _, _| {});
        }
        let now = Instant::now();
        returns.push(returned(3));
        waits.push((returns.due().unwrap() - now).as_millis());
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 100]);
    }
}
