//! The requeue of deliveries that were dropped without a settlement, with a growing delay; used by the supervisor.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::channel_epoch::{ChannelEpoch, DroppedDelivery, StreamMessage};

const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Deliveries of one channel that were dropped without a settlement and wait for their requeue.
///
/// RabbitMQ redelivers a requeued message at once, so the requeue is delayed: by [`MIN_DELAY`], then twice as
/// long each time up to [`MAX_DELAY`], until a delivery is acknowledged.
pub(super) struct Redelivery {
    epoch: Arc<ChannelEpoch>,
    waiting: Vec<DroppedDelivery>,
    due: Option<Instant>,
    delay: Duration,
    /// Acknowledgements at the last requeue.
    acked: u64,
}

impl Redelivery {
    pub(super) fn new(epoch: Arc<ChannelEpoch>) -> Self {
        Self { epoch, waiting: Vec::new(), due: None, delay: MIN_DELAY, acked: 0 }
    }

    pub(super) fn push(&mut self, delivery: DroppedDelivery) {
        self.waiting.push(delivery);
        if self.due.is_none() {
            self.due = Some(Instant::now() + self.delay);
        }
    }

    /// The time of the next requeue.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Requeues all waiting deliveries in their order, by `nack`, which writes that of a tag to the channel. Those
    /// of a stream go to `redeliver`.
    pub(super) fn requeue(
        &mut self,
        nack: impl Fn(u64),
        mut redeliver: impl FnMut(u64, StreamMessage),
    ) {
        let acked = self.epoch.acks.count();
        self.delay = match acked > self.acked {
            true => MIN_DELAY,
            false => (self.delay * 2).min(MAX_DELAY),
        };
        (self.acked, self.due) = (acked, None);
        self.waiting.sort_by_key(|delivery| delivery.tag);
        for DroppedDelivery { tag, of_stream } in self.waiting.drain(..) {
            if let Some(message) = of_stream {
                redeliver(tag, message);
                continue;
            }
            nack(tag);
            self.epoch.acks.requeued(tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(tag: u64) -> DroppedDelivery {
        DroppedDelivery { tag, of_stream: None }
    }

    #[tokio::test(start_paused = true)]
    async fn delay_grows_until_an_acknowledgement() {
        let (epoch, _dropped) = ChannelEpoch::new();
        let mut redelivery = Redelivery::new(Arc::clone(&epoch));
        assert_eq!(redelivery.due(), None);
        let mut delays = Vec::new();
        for round in 0..9 {
            if round == 8 {
                epoch.acks.record(3);
            }
            let now = Instant::now();
            redelivery.push(dropped(2));
            redelivery.push(dropped(1));
            delays.push((redelivery.due().unwrap() - now).as_millis());
            redelivery.requeue(|_| {}, |_, _| {});
        }
        let now = Instant::now();
        redelivery.push(dropped(3));
        delays.push((redelivery.due().unwrap() - now).as_millis());
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 100]);
    }
}
