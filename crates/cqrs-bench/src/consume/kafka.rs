//! Consuming from Kafka, against a raw `StreamConsumer` with the same decoding, which stores each
//! record's offset after handling it and commits every second.

use std::sync::Arc;

use cqrs_core::Subscription;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};

use super::{Meter, decoding, fill, ours};
use crate::event::Benched;
use crate::measure::{Round, Side, Unit};
use crate::peers::{Request, Target};
use crate::raw::kafka::{self, Reads, Topic, unique};
use crate::settings::{Case, Settings};

pub(crate) async fn run(settings: &Settings) {
    for case in settings.event_cases(200_000) {
        let topic = Topic::create(&settings.servers, "consume", case.partitions).await;
        topic.deleted_after(consume(settings, &case, topic.name())).await;
    }
}

async fn consume(settings: &Settings, case: &Case, topic: Arc<str>) {
    let servers = &settings.servers;
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers])).await.expect("Kafka");
    fill(&broker, &topic, case.messages, &case.template).await;
    for &concurrency in &settings.concurrency {
        let request = Request::Consume {
            target: Target::kafka(servers, &topic),
            messages: case.messages,
            concurrency,
            codec: case.template.codec(),
        };
        let mut sides = vec![
            Side::new("raw", || raw(servers, &topic, case, Reads::Event)),
            Side::new("ours", || {
                // A new group each time: the same records again.
                let group = format!("bench-{}", unique());
                let to = Subscription::to(&*topic).group(group).concurrency(concurrency);
                ours(broker.clone(), decoding(&case.template, to), case.messages)
            }),
        ];
        if case.template.names_in_headers() {
            let payload = || raw(servers, &topic, case, Reads::Payload);
            sides.push(Side::new("raw, payload alone", payload));
        }
        sides.extend(settings.peer_sides(&request));
        let what = format!("{}, concurrency {concurrency}", case.on_kafka());
        settings.comparison("consume-kafka", what, Unit::MessagesPerSecond).run(sides).await;
    }
}

async fn raw(servers: &str, topic: &str, case: &Case, reads: Reads) -> Round {
    let consumer = kafka::consumer(servers, topic);
    let meter = Meter::new(case.messages);
    let counting = meter.clone();
    let count = move |event: Benched| counting.count(&event);
    let consuming = kafka::consume(consumer, case.template.clone(), reads, count);
    // In a task, as ours is: the main task of a runtime is woken in another way.
    tokio::spawn(consuming).await.expect("the loop");
    meter.round()
}
