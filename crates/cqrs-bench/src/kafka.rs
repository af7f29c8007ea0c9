//! Publishing to Kafka, against `FutureProducer::send_result` with the same settings.

use std::sync::Arc;

use cqrs_core::MessageBroker;
use cqrs_core::message::header;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use uuid::Uuid;

use crate::load::{Encoded, Format, Load};
use crate::measure::{Unit, compare};

pub(crate) async fn publish(servers: &str, messages: usize, rounds: usize, format: Format) {
    let topic = format!("bench-{}", std::process::id());
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers])).await.expect("kafka");
    let broker: Arc<dyn MessageBroker> = Arc::new(broker);
    let producer = producer(servers);
    for tasks in [1, 64] {
        let load = Load::new(&topic, messages, tasks, format);
        let raw = || raw(&producer, &load);
        let ours = async || load.run_ours(&broker).await;
        let scenario = format!("publish-kafka: {tasks} task(s), {format:?}");
        compare(scenario, Unit::MessagesPerSecond, rounds, ours, raw).await;
    }
}

/// A raw producer with the settings of ours.
pub(crate) fn producer(servers: &str) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", "5")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .set("message.timeout.ms", "30000")
        .create()
        .expect("a raw producer")
}

/// What names an event that is no JSON.
fn headers() -> OwnedHeaders {
    let id = Uuid::now_v7().to_string();
    OwnedHeaders::new_with_capacity(2)
        .insert(Header { key: header::EVENT_NAME, value: Some(Encoded::NAME) })
        .insert(Header { key: header::MESSAGE_ID, value: Some(&id) })
}

/// Publishes `load`, and returns the messages a second, confirms included.
pub(crate) async fn raw(producer: &FutureProducer, load: &Load) -> f64 {
    let (topic, producer, sent) = (load.topic.clone(), producer.clone(), load.clone());
    load.run(move |index| {
        let (key, body) = (sent.key(index), sent.body(index));
        let mut record = FutureRecord::to(&topic).key(&key[..]).payload(&body[..]);
        if sent.format == Format::Protobuf {
            record = record.headers(headers());
        }
        let delivery = producer.send_result(record).map_err(|(error, _)| error).expect("queued");
        async move {
            async move {
                delivery
                    .await
                    .expect("a live producer")
                    .map_err(|(error, _)| error)
                    .expect("stored");
            }
        }
    })
    .await
}
