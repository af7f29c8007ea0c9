//! Publishes one message on a channel and reads returns; used by the publisher.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs_core::broker::SharedMessage;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Confirmation, ConnectionState, ErrorKind};

use super::frame::{Frame, FrameFormat};
use super::unconfirmed::Returned;

/// The server's answer to one message. Small, because it is moved several times on its way.
pub(super) struct Answer {
    pub(super) ack: bool,
    /// The return that lapin attached to it; it may name another message.
    pub(super) returned: Option<Box<Returned>>,
}

/// Publishes one message and waits for its confirm. The first poll hands it to lapin.
///
/// The frame is made in here, because a future is moved into its place with all that it holds.
pub(super) async fn publish(
    channel: Arc<lapin::Channel>,
    format: Arc<FrameFormat>,
    message: SharedMessage,
    unwritten: Unwritten,
) -> lapin::Result<Answer> {
    let options =
        BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
    let Frame { exchange, routing_key, properties } = format.frame(&message);
    let confirm =
        channel.basic_publish(exchange, routing_key, options, &message.body, properties).await?;
    drop((unwritten, message, format));
    let (ack, returned) = match confirm.await? {
        Confirmation::Ack(returned) => (true, returned),
        Confirmation::Nack(returned) => (false, returned),
        Confirmation::NotRequested => {
            return Err(ErrorKind::InvalidConnectionState(ConnectionState::Error).into());
        }
    };
    Ok(Answer { ack, returned: returned.map(|returned| Box::new(read_return(returned))) })
}

/// Counts a message until lapin has written it.
pub(super) struct Unwritten(Arc<AtomicUsize>);

impl Unwritten {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The part of a return that names its message.
fn read_return(returned: BasicReturnMessage) -> Returned {
    let id = returned.properties.message_id().as_ref();
    Returned {
        id: id.and_then(|id| id.as_str().parse().ok()),
        topic: returned.routing_key.to_string(),
        reason: format!(
            "no queue is bound to exchange {:?} for routing key {:?} (the server says {}: {}): start its \
             consumer first, declare queue and binding in the config (`queues`, `bindings`), or set \
             `mandatory = false` for this event",
            returned.exchange.as_str(),
            returned.routing_key.as_str(),
            returned.reply_code,
            returned.reply_text
        ),
    }
}
