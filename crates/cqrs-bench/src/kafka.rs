//! Publishing to Kafka, against `FutureProducer::send_result` with the same settings.

use std::sync::Arc;

use cqrs_core::MessageBroker;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::load::Load;

pub(crate) async fn publish(servers: &str, messages: usize, rounds: usize) {
    let topic = format!("bench-{}", std::process::id());
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers])).await.expect("kafka");
    let broker: Arc<dyn MessageBroker> = Arc::new(broker);
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", "5")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .set("message.timeout.ms", "30000")
        .create()
        .expect("a raw producer");
    for tasks in [1, 64] {
        let load = Load::new(&topic, messages, tasks);
        let raw = || raw(&producer, &load);
        load.compare(format!("publish-kafka: {tasks} task(s)"), rounds, &broker, raw).await;
    }
}

async fn raw(producer: &FutureProducer, load: &Load) -> f64 {
    let (topic, producer, sent) = (load.topic.clone(), producer.clone(), load.clone());
    load.run(move |index| {
        let (key, body) = (sent.key(index), sent.body());
        let record = FutureRecord::to(&topic).key(&key[..]).payload(&body[..]);
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
