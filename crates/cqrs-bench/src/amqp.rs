//! Publishing to RabbitMQ, against raw lapin with streamed confirms and the same settings.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, BindingConfig, QueueConfig};
use cqrs_core::MessageBroker;
use cqrs_core::message::content_type;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use uuid::Uuid;

use crate::load::{Encoded, Format, Load};
use crate::measure::{Unit, compare};

const EXCHANGE: &str = "bench";

pub(crate) async fn publish(dsn: &str, messages: usize, rounds: usize, format: Format) {
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
    for frame in [RawFrame::Same, RawFrame::Bare] {
        for tasks in [1, 64] {
            let load = Load::new(&topic, messages, tasks, format);
            let raw = || raw(&raw_channels, &load, frame);
            let scenario = format!(
                "publish-amqp: {tasks} task(s), {format:?}, raw client sends {frame:?} frame"
            );
            let ours = async || load.run_ours(&broker).await;
            compare(scenario, Unit::MessagesPerSecond, rounds, ours, raw).await;
        }
    }
}

/// What the raw client sends with each message.
#[derive(Debug, Clone, Copy)]
enum RawFrame {
    /// What we send: id, time, and the key as a header.
    Same,
    /// The body and the delivery mode, so less than a consumer of ours could work with.
    Bare,
}

impl RawFrame {
    fn properties(self, key: &[u8], format: Format) -> BasicProperties {
        let bare = BasicProperties::default().with_delivery_mode(2);
        match self {
            Self::Bare => bare,
            Self::Same => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
                let mut headers = FieldTable::default();
                headers.insert("message_key".into(), AMQPValue::LongString(key.into()));
                let bare = match format {
                    Format::Bytes => bare,
                    Format::Protobuf => bare
                        .with_type(Encoded::NAME.into())
                        .with_content_type(content_type::PROTOBUF.into()),
                };
                bare.with_message_id(Uuid::now_v7().to_string().into())
                    .with_timestamp(now.as_secs())
                    .with_headers(headers)
            }
        }
    }
}

async fn raw(channels: &[Channel], load: &Load, frame: RawFrame) -> f64 {
    let (channels, sent) = (channels.to_vec(), load.clone());
    load.run(move |index| {
        let channel = channels[index % channels.len()].clone();
        let format = sent.format;
        let (topic, key, body) = (sent.topic.clone(), sent.key(index), sent.body(index));
        async move {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let properties = frame.properties(&key, format);
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
