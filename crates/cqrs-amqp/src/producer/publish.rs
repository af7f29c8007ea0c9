//! Publishes one message on a channel and reads returns; used by the publisher.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use cqrs_core::broker::SharedMessage;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Confirmation, ConnectionState, ErrorKind, PublisherConfirm};

use super::frame::{Frame, FrameFormat};
use super::unconfirmed::Returned;

/// The server's answer to one message. Small, because it is moved several times on its way.
pub(super) struct Answer {
    pub(super) ack: bool,
    /// The return that lapin attached to it; it may name another message.
    pub(super) returned: Option<Box<Returned>>,
}

/// The future of the server's answer to a message that lapin has written.
pub(super) struct Confirm(PublisherConfirm);

impl Future for Confirm {
    type Output = lapin::Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (ack, returned) = match ready!(Pin::new(&mut self.0).poll(cx))? {
            Confirmation::Ack(returned) => (true, returned),
            Confirmation::Nack(returned) => (false, returned),
            Confirmation::NotRequested => {
                let error = ErrorKind::InvalidConnectionState(ConnectionState::Error);
                return Poll::Ready(Err(error.into()));
            }
        };
        let returned = returned.map(|returned| Box::new(read_return(returned)));
        Poll::Ready(Ok(Answer { ack, returned }))
    }
}

/// Publishes one message and waits until it is written. The first poll hands it to lapin.
///
/// The frame is made in here, because a future is moved into its place with all that it holds.
pub(super) async fn write(
    channel: Arc<lapin::Channel>,
    format: Arc<FrameFormat>,
    message: SharedMessage,
) -> Result<Confirm, lapin::Result<Answer>> {
    let options =
        BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
    let Frame { exchange, routing_key, properties } = format.frame(&message);
    let written =
        channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
    written.map(Confirm).map_err(Err)
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
