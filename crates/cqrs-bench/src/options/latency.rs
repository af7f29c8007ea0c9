//! The options of a Kafka broker value that change the latency of a message.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Subscription;
use cqrs_kafka::{Acks, KafkaConfig, KafkaMessageBroker};

use crate::measure::Side;
use crate::publish::Ours;
use crate::raw::kafka::Topic;
use crate::roundtrip::{METRICS, Pace, Way};
use crate::settings::Settings;

const RATE: usize = 1_000;
const SECONDS: usize = 5;

type Change = (&'static str, fn(&mut KafkaConfig));

const CHANGES: [Change; 4] = [
    ("defaults", |_| {}),
    ("linger = 0 ms", |config| config.linger = Duration::ZERO),
    ("linger = 50 ms", |config| config.linger = Duration::from_millis(50)),
    ("acks = 1", |config| {
        config.enable_idempotence = false;
        config.acks = Acks::Leader;
    }),
];

/// Each has a topic of its own.
pub(super) async fn kafka(settings: &Settings) {
    for case in settings.event_cases(RATE * SECONDS) {
        let mut topics = Vec::new();
        for _ in CHANGES {
            topics.push(Topic::create(&settings.servers, "latency", case.partitions).await);
        }
        let mut ways = Vec::new();
        for (topic, (option, change)) in topics.iter().zip(CHANGES) {
            let mut config = KafkaConfig::new([&settings.servers]);
            change(&mut config);
            let broker = KafkaMessageBroker::connect(config).await.expect("Kafka");
            let topic = topic.name();
            let subscription = Subscription::to(&*topic).group("bench");
            let template = case.template.clone();
            let publisher = Ours { broker: Arc::new(broker.clone()), topic, template };
            ways.push((option, Way::ours(publisher, broker, subscription).await));
        }
        let pace = Pace { rate: RATE, messages: case.messages };
        let sides = ways.iter().map(|(option, way)| Side::new(*option, move || way.round(pace)));
        let what = format!("{}, {RATE}/s", case.on_kafka());
        let comparison = settings.comparison_of("options-latency-kafka", what, METRICS.to_vec());
        comparison.run(sides.collect()).await;
        for (_, way) in ways {
            way.end().await;
        }
        for topic in topics {
            topic.deleted_after(async {}).await;
        }
    }
}
