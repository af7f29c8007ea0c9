//! Publishes copies straight to queues, confirmed; part of the consumer, shared by its subscriptions.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Confirmation};
use tokio::sync::Semaphore;

use super::declare::{declare_strictly, ensure};
use crate::config::{AmqpConfig, QueueConfig};
use crate::connect::topology::short;
use crate::connect::{Connector, Health, PooledChannel};
use crate::error::{AmqpError, ErrorKind, from_lapin};

/// Channels, each with one message in flight: a confirm, a return and a channel error concern that message
/// only.
const CHANNELS: u16 = 16;
/// Limit for one confirm, a new connection included.
const LIMIT: Duration = Duration::from_secs(30);

/// Publishes retry copies and dead letters straight to queues, confirmed, on a connection of its own: a
/// server that blocks publishers (a memory alarm) must not block the acknowledgements of the consumers.
///
/// Shared by the subscriptions of a broker value; connects when first needed.
pub(super) struct Copies {
    connector: Connector,
    idle: Mutex<Vec<PooledChannel>>,
    permits: Semaphore,
}

/// The queue of a copy.
pub(super) struct Target {
    pub(super) queue: QueueConfig,
    pub(super) if_missing: IfMissing,
}

/// The outcome of a copy.
pub(super) enum Written {
    /// The server confirmed it.
    Stored,
    /// Its headers, with those of the copy, do not fit into a frame. Nothing was sent; retrying cannot fix it.
    TooLarge(AmqpError),
}

/// The action if the queue does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfMissing {
    /// Declares it with exactly these properties.
    Declare,
    /// Declares it unless it exists by then.
    Ensure,
    /// None: it is not ours, or only the consumer's connection may declare it.
    Leave,
}

impl Copies {
    pub(super) fn new(config: &AmqpConfig) -> Result<Self, AmqpError> {
        Ok(Self {
            connector: Connector::for_copies(config, CHANNELS)?,
            idle: Mutex::default(),
            permits: Semaphore::new(usize::from(CHANNELS)),
        })
    }

    /// Publishes a copy to the queue of `target` and waits for the confirm, 30 s at most.
    ///
    /// # Errors
    /// When the server did not confirm: it may or may not have the copy.
    ///
    /// # Cancel safety
    /// Dropped, the copy may have been stored. The channel is closed, so that no other confirm is taken for
    /// its own.
    pub(super) async fn write(
        &self,
        target: &Target,
        properties: &BasicProperties,
        body: &[u8],
    ) -> Result<Written, AmqpError> {
        let publishing = async {
            let closed = |_closed| AmqpError::new(ErrorKind::ConnectionLost, "closed");
            let _permit = self.permits.acquire().await.map_err(closed)?;
            let mut attempt = self.attempt(target, properties, body).await?;
            if matches!(attempt, Attempt::Unroutable(_)) && target.if_missing != IfMissing::Leave {
                self.declare(target).await?;
                attempt = self.attempt(target, properties, body).await?;
            }
            match attempt {
                Attempt::Done(written) => Ok(written),
                Attempt::Unroutable(error) => Err(error),
            }
        };
        tokio::time::timeout(LIMIT, publishing).await.unwrap_or_else(|_elapsed| {
            let detail = format!(
                "queue {:?} on {}: no confirm within {LIMIT:?}",
                target.queue.name,
                self.connector.address()
            );
            Err(AmqpError::new(ErrorKind::ConnectionLost, detail))
        })
    }

    async fn attempt(
        &self,
        target: &Target,
        properties: &BasicProperties,
        body: &[u8],
    ) -> Result<Attempt, AmqpError> {
        let mut pooled = self.channel().await?;
        let result = match check(target, properties, &pooled) {
            Ok(()) => publish(&pooled, target, properties, body).await,
            Err(error) => Ok(Attempt::Done(Written::TooLarge(error))),
        };
        match result {
            Ok(attempt) => {
                pooled.confirmed = true;
                self.idle().push(pooled);
                Ok(attempt)
            }
            Err(error) => {
                self.connector.lost(&pooled).await;
                Err(error)
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<PooledChannel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open channel without a message in flight.
    async fn channel(&self) -> Result<PooledChannel, AmqpError> {
        let idle = std::iter::from_fn(|| self.idle().pop()).find(|pooled| {
            matches!(*pooled.health.borrow(), Health::Up) && pooled.channel.status().connected()
        });
        match idle {
            Some(pooled) => Ok(pooled),
            None => self.connector.open().await,
        }
    }

    async fn declare(&self, target: &Target) -> Result<(), AmqpError> {
        let pooled = self.channel().await?;
        let queue = &target.queue;
        tracing::warn!(queue = %queue.name, "a queue for retries or dead letters is gone; declaring it");
        let connection = &pooled.connection;
        let declaring = async {
            match target.if_missing {
                IfMissing::Ensure => ensure(queue, connection, false).await.map(drop),
                IfMissing::Declare | IfMissing::Leave => declare_strictly(queue, connection).await,
            }
        };
        connection.answered(LIMIT, declaring).await?;
        self.idle().push(pooled);
        Ok(())
    }
}

/// Rejects a copy whose headers do not fit into a frame: the server would close the connection over it. The
/// body is not larger than that of the original.
fn check(
    target: &Target,
    properties: &BasicProperties,
    pooled: &PooledChannel,
) -> Result<(), AmqpError> {
    /// Frame envelope, class, weight and body size.
    const ENVELOPE: usize = 20;
    let frame = pooled.connection.header_max();
    let mut room = vec![0; frame.saturating_sub(ENVELOPE)];
    let room = std::io::Cursor::new(&mut room[..]);
    match lapin::protocol::basic::gen_properties(properties)(room.into()) {
        Ok(_fits) => Ok(()),
        Err(_too_large) => {
            let detail = format!(
                "a copy for queue {:?}: its headers and properties take more than the {frame} bytes that \
                 fit into a frame of this connection beside what the server adds",
                target.queue.name
            );
            Err(AmqpError::new(ErrorKind::ChannelClosed, detail))
        }
    }
}

enum Attempt {
    Done(Written),
    /// The queue does not exist.
    Unroutable(AmqpError),
}

/// Publishes a copy and waits for its confirm.
async fn publish(
    pooled: &PooledChannel,
    target: &Target,
    properties: &BasicProperties,
    body: &[u8],
) -> Result<Attempt, AmqpError> {
    let (name, queue) = (&target.queue.name, short(&target.queue.name)?);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let failed = |error: lapin::Error| {
        let kind = match error.is_amqp_soft_error() {
            true => ErrorKind::ChannelClosed,
            false => ErrorKind::ConnectionLost,
        };
        let doing = format!("publishing to queue {name:?}");
        from_lapin(kind, doing, &error)
    };
    let publishing = async {
        let channel = &pooled.channel;
        let confirm =
            channel.basic_publish("".into(), queue, options, body, properties.clone()).await;
        confirm.map_err(failed)?.await.map_err(failed)
    };
    // After our limit the copy is abandoned, not the connection: it may be blocked, and its other messages are
    // sent after the unblock.
    match pooled.connection.answered(2 * LIMIT, publishing).await? {
        Confirmation::Ack(None) => Ok(Attempt::Done(Written::Stored)),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            let (code, text) = (returned.reply_code, &returned.reply_text);
            let detail = format!("queue {name:?} does not exist: the server says {code}: {text}");
            Ok(Attempt::Unroutable(AmqpError::new(ErrorKind::Topology, detail)))
        }
        Confirmation::Nack(None) => {
            let detail = format!(
                "the server did not take responsibility for the copy in queue {name:?} (basic.nack)"
            );
            Err(AmqpError::new(ErrorKind::ChannelClosed, detail))
        }
        Confirmation::NotRequested => {
            let detail = "the channel has no confirms";
            Err(AmqpError::new(ErrorKind::ChannelClosed, detail))
        }
    }
}
