//! Publishes one message on a channel and reads returns; used by the publisher.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use lapin::Confirmation;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;

use super::frame::Frame;
use super::unconfirmed::Returned;

/// Publishes one message and waits for its confirm. The first poll hands it to lapin.
pub(super) async fn publish(
    channel: Arc<lapin::Channel>,
    frame: Frame,
    body: Bytes,
    mandatory: bool,
    unwritten: Unwritten,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
    let Frame { exchange, routing_key, properties } = frame;
    let confirm = channel.basic_publish(exchange, routing_key, options, &body, properties).await?;
    drop((unwritten, body));
    confirm.await
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
pub(super) fn read_return(returned: BasicReturnMessage) -> Returned {
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
