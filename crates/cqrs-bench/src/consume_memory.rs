//! Consuming from the memory broker, against its bare subscriber with the same decoding.

use cqrs_core::{MemoryBroker, MessageBrokerExt, Subscription};

use crate::consume::{Codec, Meter, ours};
use crate::measure::{Unit, compare};

pub(crate) async fn run(count: usize, rounds: usize, codec: Codec) {
    for concurrency in [1, 16] {
        let scenario =
            format!("consume-memory: {codec:?}, concurrency {concurrency}, against a bare loop");
        let baseline = async || raw(&filled(count, codec).await, count, codec).await;
        let ours = async || {
            let subscription = Subscription::to("bench")
                .group("bench")
                .concurrency(concurrency)
                .max_unsettled(1_000);
            ours(filled(count, codec).await, codec.subscribe(subscription), count).await
        };
        compare(scenario, Unit::MessagesPerSecond, rounds, ours, baseline).await;
    }
}

async fn filled(count: usize, codec: Codec) -> MemoryBroker {
    let broker = MemoryBroker::builder().capacity(count).build();
    for message in codec.messages("bench", count) {
        broker.publish(message).await.expect("room");
    }
    broker
}

async fn raw(broker: &MemoryBroker, count: usize, codec: Codec) -> f64 {
    let subscriber = broker.subscriber("bench", "bench");
    let meter = Meter::new(count);
    // In a task, as ours is: the main task of a runtime is woken in another way.
    let counting = meter.clone();
    let task = tokio::spawn(async move {
        while let Some(delivery) = subscriber.recv().await {
            let last = counting.count(&codec.decode(&delivery.message().body));
            delivery.ack();
            if last {
                break;
            }
        }
    });
    task.await.expect("the loop");
    meter.rate()
}
