//! Publishing to RabbitMQ, against raw lapin with streamed confirms and the same settings.

use std::sync::Arc;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, BindingConfig, QueueConfig};

use super::{Load, Ours, WINDOW, tasks};
use crate::measure::{Side, Unit};
use crate::peers::{Request, Target};
use crate::raw::amqp::{EXCHANGE, RawChannels, delete_queues};
use crate::settings::{Case, Settings};

pub(crate) async fn run(settings: &Settings) {
    for (number, case) in settings.cases(20_000).into_iter().enumerate() {
        let topic: Arc<str> = format!("bench-publish-{}-{number}", std::process::id()).into();
        publish(settings, &case, &topic).await;
        delete_queues(&settings.dsn, &[&topic]).await;
    }
}

/// A queue that keeps little, so that the rounds do not slow each other down; the publishes cost the same.
pub(crate) fn config(dsn: &str, topic: &str) -> AmqpConfig {
    let mut config = AmqpConfig::new(dsn);
    config.exchange.name = EXCHANGE.to_owned();
    config.queues.push(QueueConfig::new(topic).with_argument("x-max-length", 1_000));
    config.bindings.push(BindingConfig::new(topic, topic));
    config
}

async fn publish(settings: &Settings, case: &Case, topic: &Arc<str>) {
    let config = config(&settings.dsn, topic);
    let channels = config.channels_per_connection;
    let broker = AmqpMessageBroker::connect(config).await.expect("RabbitMQ");
    let template = case.template.clone();
    let raw = RawChannels::open(&settings.dsn, channels, Arc::clone(topic), template.clone()).await;
    let ours = Ours { broker: Arc::new(broker), topic: Arc::clone(topic), template };
    let bare = raw.bare();
    for &count in &settings.tasks {
        let load = Load { messages: case.messages, tasks: count, window: WINDOW };
        let request = Request::Publish {
            target: Target::amqp(&settings.dsn, topic),
            messages: load.messages,
            tasks: load.tasks,
            window: load.window,
            codec: case.template.codec(),
            body: case.template.size(),
        };
        let mut sides = vec![
            Side::new("raw", || load.run(raw.clone())),
            Side::new("ours", || load.run(ours.clone())),
            Side::new("raw, bare frame", || load.run(bare.clone())),
        ];
        sides.extend(settings.peer_sides(&request));
        let what = format!("{}, {}", case.template, tasks(count));
        settings.comparison("publish-amqp", what, Unit::MessagesPerSecond).run(sides).await;
    }
}
