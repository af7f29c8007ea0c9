//! `memory`, `consume-kafka` and `consume-amqp`: decode, dispatch and settle, against the raw clients.

#[cfg(feature = "servers")]
mod amqp;
#[cfg(feature = "servers")]
mod kafka;
mod memory;
mod meter;

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::{
    EventHandler, EventMediator, HandlerError, MemoryBroker, MessageBroker, NotificationEvent,
    Scope, Service, Subscribe, Subscription,
};
use cqrs_protobuf::ProtobufDeserializer;

#[cfg(feature = "servers")]
pub(crate) use self::amqp::{declare, run as amqp};
#[cfg(feature = "servers")]
pub(crate) use self::kafka::run as kafka;
pub(crate) use self::memory::run as memory;
use self::meter::Meter;
use crate::event::{Benched, Codec, Template};
use crate::measure::Round;

/// The subscription with the decoding of the template's events.
pub(crate) fn decoding(template: &Template, subscription: Subscription) -> Subscription {
    match template.codec() {
        Codec::Protobuf => subscription.decode::<Benched>(ProtobufDeserializer::new()),
        Codec::Json | Codec::Bytes => subscription.json::<Benched>(),
    }
}

/// Publishes `count` messages.
pub(crate) async fn fill(
    broker: &impl MessageBroker,
    topic: &Arc<str>,
    count: usize,
    template: &Template,
) {
    let mut receipts = Vec::with_capacity(count);
    for number in 0..count {
        let message = template.message(topic, number);
        receipts.push(broker.enqueue(message).await.expect("a place"));
    }
    for receipt in receipts {
        receipt.await.expect("a confirm");
    }
}

/// A memory broker with `count` messages, encoded before.
pub(crate) async fn filled(topic: &Arc<str>, count: usize, template: &Template) -> MemoryBroker {
    let broker = MemoryBroker::builder().capacity(count).build();
    fill(&broker, topic, count, template).await;
    broker
}

struct Count {
    meter: Meter,
    work: Duration,
}

impl EventHandler<NotificationEvent<Benched>> for Count {
    async fn handle(
        &self,
        event: &NotificationEvent<Benched>,
        _: &mut Scope,
    ) -> Result<(), HandlerError> {
        if !self.work.is_zero() {
            tokio::time::sleep(self.work).await;
        }
        self.meter.count(&event.payload);
        Ok(())
    }
}

/// Our side: a service with an event mediator, until all messages are handled. The subscription decodes
/// them.
pub(crate) async fn ours(
    broker: impl Subscribe,
    subscription: Subscription,
    messages: usize,
) -> Round {
    with_work(broker, subscription, messages, Duration::ZERO).await
}

/// The same with a handler that waits for `work`.
pub(crate) async fn with_work(
    broker: impl Subscribe,
    subscription: Subscription,
    messages: usize,
    work: Duration,
) -> Round {
    let meter = Meter::new(messages);
    let count = Count { meter: meter.clone(), work };
    let events = EventMediator::builder()
        .event::<NotificationEvent<Benched>, _>(count)
        .build()
        .expect("a mediator");
    let service =
        Service::builder(broker).subscribe(subscription, events).build().expect("a service");
    let report = service.run_until(meter.done()).await.expect("it ends well");
    assert_eq!(report.subscriptions[0].counts.handled as usize, messages);
    meter.round()
}
