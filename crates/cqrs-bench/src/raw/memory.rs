//! The memory broker's bare subscriber.

use cqrs_core::memory::MemorySubscriber;

use crate::event::{Benched, Template};

/// Decodes, handles and acks messages until `is_last` says so.
pub(crate) async fn consume(
    subscriber: MemorySubscriber,
    template: Template,
    mut is_last: impl FnMut(Benched) -> bool + Send,
) {
    while let Some(delivery) = subscriber.recv().await {
        let is_last = is_last(template.decode(&delivery.message().body));
        delivery.ack();
        if is_last {
            break;
        }
    }
}
