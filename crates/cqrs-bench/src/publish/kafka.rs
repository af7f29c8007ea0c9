//! Publishing to Kafka, against `FutureProducer::send_result` with the same settings.

use std::sync::Arc;

use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};

use super::{Load, Ours, WINDOW, tasks};
use crate::measure::{Side, Unit};
use crate::peers::{Request, Target};
use crate::raw::kafka::{RawProducer, Topic};
use crate::settings::{Case, Settings};

pub(crate) async fn run(settings: &Settings) {
    for case in settings.cases(100_000) {
        let topic = Topic::create(&settings.servers, "publish", case.partitions).await;
        topic.deleted_after(publish(settings, &case, topic.name())).await;
    }
}

async fn publish(settings: &Settings, case: &Case, topic: Arc<str>) {
    let servers = &settings.servers;
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers])).await.expect("Kafka");
    let template = case.template.clone();
    let raw = RawProducer::new(servers, Arc::clone(&topic), template.clone());
    let ours = Ours { broker: Arc::new(broker), topic: Arc::clone(&topic), template };
    for &count in &settings.tasks {
        let load = Load { messages: case.messages, tasks: count, window: WINDOW };
        let request = Request::Publish {
            target: Target::kafka(servers, &topic),
            messages: load.messages,
            tasks: load.tasks,
            window: load.window,
            codec: case.template.codec(),
            body: case.template.size(),
        };
        let mut sides = vec![
            Side::new("raw", || load.run(raw.clone())),
            Side::new("ours", || load.run(ours.clone())),
        ];
        sides.extend(settings.peer_sides(&request));
        let what = format!("{}, {}", case.on_kafka(), tasks(count));
        settings.comparison("publish-kafka", what, Unit::MessagesPerSecond).run(sides).await;
    }
}
