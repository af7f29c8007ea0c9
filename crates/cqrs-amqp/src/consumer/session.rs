//! One session of a source: an open channel, its consumers and its deliveries; owned by the supervisor.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicNackOptions, BasicQosOptions};
use tokio::sync::mpsc;

use super::channel_epoch::{ChannelEpoch, DroppedDelivery};
use super::context::SourceContext;
use super::declare::declare;
use super::receiver::DeliveryReceiver;
use crate::connect::{Connector, PooledChannel};
use crate::error::{AmqpError, ErrorKind, from_lapin};

/// For one answer of the server.
const LIMIT: Duration = Duration::from_secs(15);

/// A channel and the deliveries on it. Dropped, it ends its epoch.
pub(super) struct Session {
    pub(super) pooled: PooledChannel,
    pub(super) epoch: Arc<ChannelEpoch>,
    /// Deliveries that were dropped unsettled.
    pub(super) dropped: mpsc::UnboundedReceiver<DroppedDelivery>,
    pub(super) receiver: DeliveryReceiver,
}

impl Session {
    /// Opens a channel on the source's connection, declares, and starts the consumers: one attempt, after
    /// the connector's backoff. Cancel safe: the channel is closed.
    pub(super) async fn open(
        connector: &Connector,
        context: &Arc<SourceContext>,
    ) -> Result<Self, AmqpError> {
        let pooled = connector.open().await?;
        let setting_up = async {
            declare(&context.plan, &context.look_up_first, &pooled.connection).await?;
            let starting = async {
                let (channel, prefetch) = (&pooled.channel, context.plan.prefetch);
                channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(|error| {
                    from_lapin(ErrorKind::Topology, "setting the prefetch", &error)
                })?;
                let (epoch, dropped) = ChannelEpoch::new();
                let receiver = DeliveryReceiver::start(&pooled, &epoch, context).await?;
                Ok((epoch, dropped, receiver))
            };
            pooled.connection.answered(LIMIT, starting).await
        };
        match setting_up.await {
            Ok((epoch, dropped, receiver)) => Ok(Self { pooled, epoch, dropped, receiver }),
            Err(error) => {
                connector.lost(&pooled).await;
                Err(error)
            }
        }
    }

    /// Hands out no further delivery. Those that were handed out can still be settled. The others are
    /// requeued only when the channel is closed, unless the consumers were not started: before that, another
    /// consumer would handle a key's next messages beside those that run here.
    pub(super) async fn stop(&mut self, limit: Duration) {
        self.receiver.leave_quarantine();
        if self.receiver.keeps_deliveries() {
            return;
        }
        let _or_cancelled_with_the_channel =
            tokio::time::timeout(limit, self.receiver.cancel()).await;
    }

    /// Requeues unsettled deliveries and closes the channel. `Ok` if the server answered: then it has
    /// seen all settlements.
    pub(super) async fn close(&mut self, limit: Duration) -> Result<(), AmqpError> {
        self.epoch.end();
        let (channel, receiver) = (&self.pooled.channel, &mut self.receiver);
        self.epoch.acks.write(channel);
        let closing = async {
            receiver.wait_until_idle(limit / 4).await;
            receiver.cancel().await;
            receiver.flush_acks().await;
            // A stream takes nothing back.
            if !receiver.is_of_stream() {
                // A nack, because RabbitMQ 4.3 counts deliveries that are requeued with their channel as
                // failures of the consumer. Tag 0 stands for all deliveries.
                let options = BasicNackOptions { multiple: true, requeue: true };
                let _or_requeued_with_the_channel = channel.basic_nack(0, options).await;
            }
            channel.close(200, "OK".into()).await.map_err(|error| {
                from_lapin(ErrorKind::ConnectionLost, "closing the channel", &error)
            })
        };
        self.pooled.connection.answered(limit, closing).await
    }

    /// Drops the session after its end and closes the channel if that is still open.
    pub(super) async fn abandon(mut self) {
        /// The connection is closed after it, even without an answer.
        const LIMIT: Duration = Duration::from_secs(1);
        self.epoch.end();
        if self.pooled.channel.status().connected() {
            let _or_closed_with_the_connection = self.close(LIMIT).await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.epoch.end();
    }
}
