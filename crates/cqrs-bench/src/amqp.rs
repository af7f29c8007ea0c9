//! Publishing to RabbitMQ, against raw lapin with streamed confirms and the same settings.

use std::sync::Arc;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, BindingConfig, QueueConfig};
use cqrs_core::MessageBroker;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::load::Load;

const EXCHANGE: &str = "bench";

pub(crate) async fn publish(dsn: &str, messages: usize, rounds: usize) {
    let topic = format!("bench-{}", std::process::id());
    let mut config = AmqpConfig::new(dsn);
    config.exchange.name = EXCHANGE.to_owned();
    // Keeps little, so that the rounds do not slow each other down; the publishes cost the same.
    config.queues.push(QueueConfig::new(&topic).with_argument("x-max-length", 1_000));
    config.bindings.push(BindingConfig::new(&topic, &topic));
    let channels = config.channels_per_connection;
    let broker = AmqpMessageBroker::connect(config).await.expect("rabbitmq");
    let broker: Arc<dyn MessageBroker> = Arc::new(broker);

    let connection =
        Connection::connect(dsn, ConnectionProperties::default()).await.expect("a raw connection");
    let mut raw_channels = Vec::new();
    for _ in 0..channels {
        let channel = connection.create_channel().await.expect("a raw channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        raw_channels.push(channel);
    }
    for tasks in [1, 64] {
        let load = Load::new(&topic, messages, tasks);
        let raw = || raw(&raw_channels, &load);
        load.compare(format!("publish-amqp: {tasks} task(s)"), rounds, &broker, raw).await;
    }
}

async fn raw(channels: &[Channel], load: &Load) -> f64 {
    let (channels, sent) = (channels.to_vec(), load.clone());
    load.run(move |index| {
        let channel = channels[index % channels.len()].clone();
        let (topic, body) = (sent.topic.clone(), sent.body());
        async move {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let properties = BasicProperties::default().with_delivery_mode(2);
            let confirm = channel
                .basic_publish(EXCHANGE.into(), (&*topic).into(), options, &body, properties)
                .await
                .expect("written");
            async move {
                assert!(confirm.await.expect("a confirm").is_ack());
            }
        }
    })
    .await
}
