//! Publishing in process: an event encoded, put into the window, and confirmed.

use cqrs_core::{DevnullMessageBroker, MemoryBroker, MessageBroker, MessageBrokerExt};

use crate::consume::{TOPIC, Text};
use crate::measured::{block_on, runtime};

pub(crate) fn devnull(messages: usize) {
    publish(&DevnullMessageBroker::new(), messages);
}

pub(crate) fn memory(messages: usize) {
    let broker = MemoryBroker::builder().capacity(messages).build();
    broker.create_group(TOPIC, "costs", cqrs_core::StartAt::Earliest);
    publish(&broker, messages);
}

fn publish(broker: &impl MessageBroker, messages: usize) {
    let event = Text::event();
    block_on(&runtime(), async {
        for _ in 0..messages {
            broker.publish_event(event.clone()).await.expect("confirmed");
        }
    });
}
