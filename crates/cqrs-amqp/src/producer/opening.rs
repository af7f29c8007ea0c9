//! Opens the channel of a publisher, again after a loss; part of the publisher.

use std::time::Duration;

use cqrs_core::broker::BoxFuture;

use super::publisher::PublisherContext;
use super::status::PublisherState;
use crate::connect::PooledChannel;

/// Opens a channel, retried forever.
pub(super) async fn open(index: usize, context: PublisherContext) -> PooledChannel {
    loop {
        match context.connector.open().await {
            Ok(pooled) => return pooled,
            Err(error) => context.status.set(index, PublisherState::Down(Some(error))),
        }
    }
}

/// Opens a channel after the loss of another one, which counts for the backoff if `backoff` is set.
pub(super) fn reopen(
    index: usize,
    context: PublisherContext,
    lost: PooledChannel,
    backoff: bool,
) -> BoxFuture<'static, PooledChannel> {
    Box::pin(async move {
        match backoff {
            true => context.connector.lost(&lost).await,
            false => closed(&lost).await,
        }
        drop(lost);
        open(index, context).await
    })
}

/// Waits until lapin, too, has read that the server closed a channel: dropped before, it would close the channel again.
async fn closed(pooled: &PooledChannel) {
    const STEP: Duration = Duration::from_millis(1);
    for _ in 0..100 {
        if !pooled.channel.status().connected() {
            return;
        }
        tokio::time::sleep(STEP).await;
    }
}
