//! The memory broker's bare subscriber.

use std::hint::black_box;

use cqrs_core::memory::MemorySubscriber;
use cqrs_core::{Event as _, Message, Notification as _, NotificationEvent};

use crate::event::{Benched, Template};

/// Decodes, handles and acks messages until `is_last` says so.
pub(crate) async fn consume(
    subscriber: MemorySubscriber,
    template: Template,
    mut is_last: impl FnMut(Benched) -> bool + Send,
) {
    while let Some(delivery) = subscriber.recv().await {
        let message = delivery.message();
        let mut payload = template.decode(&message.body);
        if template.names_in_headers() {
            payload = black_box(event(message, payload)).payload;
        }
        let is_last = is_last(payload);
        delivery.ack();
        if is_last {
            break;
        }
    }
}

/// The event of a message that is no JSON, as ours: its id, name and time are in the message.
fn event(message: &Message, payload: Benched) -> NotificationEvent<Benched> {
    assert_eq!(message.name, Benched::NAME);
    let (id, time) = (message.id, message.timestamp.into());
    NotificationEvent::from_parts(payload, id, time, Benched::NAME, Benched::topic())
}
