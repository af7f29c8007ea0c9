//! The options of a broker value that publishes.

use std::sync::Arc;
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs_core::MessageBroker;
use cqrs_kafka::{Acks, Compression, KafkaConfig, KafkaMessageBroker};

use crate::measure::{Side, Unit};
use crate::publish::{Load, Ours, WINDOW, amqp_config};
use crate::raw::amqp::delete_queues;
use crate::raw::kafka::{Topic, unique};
use crate::settings::{Case, Settings};

/// The name of a setting, and the change to the defaults.
type Change<C> = (&'static str, fn(&mut C));

const KAFKA: [Change<KafkaConfig>; 15] = [
    ("defaults", |_| {}),
    ("enable_idempotence = false", |config| config.enable_idempotence = false),
    ("acks = 1", |config| {
        config.enable_idempotence = false;
        config.acks = Acks::Leader;
    }),
    ("acks = 0", |config| {
        config.enable_idempotence = false;
        config.acks = Acks::None;
    }),
    ("max_in_flight_requests_per_connection = 1", |config| {
        config.max_in_flight_requests_per_connection = 1;
    }),
    ("linger = 0 ms", |config| config.linger = Duration::ZERO),
    ("linger = 1 ms", |config| config.linger = Duration::from_millis(1)),
    ("linger = 50 ms", |config| config.linger = Duration::from_millis(50)),
    ("compression = lz4", |config| config.compression = Compression::Lz4),
    ("compression = zstd", |config| config.compression = Compression::Zstd),
    ("compression = snappy", |config| config.compression = Compression::Snappy),
    ("compression = gzip", |config| config.compression = Compression::Gzip),
    ("window_messages = 1", |config| config.window_messages = 1),
    ("window_messages = 100", |config| config.window_messages = 100),
    ("window_messages = 10000", |config| config.window_messages = 10_000),
];

const AMQP: [Change<AmqpConfig>; 8] = [
    ("defaults", |_| {}),
    ("persistent = false", |config| config.persistent = false),
    ("channels_per_connection = 1", |config| config.channels_per_connection = 1),
    ("channels_per_connection = 8", |config| config.channels_per_connection = 8),
    ("pool_size = 2", |config| config.pool_size = 2),
    ("window_messages = 1", |config| config.window_messages = 1),
    ("window_messages = 100", |config| config.window_messages = 100),
    ("window_messages = 10000", |config| config.window_messages = 10_000),
];

/// A broker value with one setting changed.
struct Changed {
    name: &'static str,
    window: usize,
    ours: Ours,
}

pub(super) async fn kafka(settings: &Settings) {
    let servers = &settings.servers;
    for case in settings.cases(50_000) {
        let topic = Topic::create(servers, "options", case.partitions).await;
        let name = topic.name();
        let measure = async {
            let mut changed = Vec::new();
            for (setting, change) in KAFKA {
                let mut config = KafkaConfig::new([servers]);
                change(&mut config);
                let window = config.window_messages;
                let broker = KafkaMessageBroker::connect(config).await.expect("Kafka");
                changed.push(Changed::new(setting, window, broker, &name, &case));
            }
            compare(settings, &case, "options-publish-kafka", case.on_kafka(), &changed).await;
        };
        topic.deleted_after(measure).await;
    }
}

pub(super) async fn amqp(settings: &Settings) {
    let dsn = settings.dsn.as_str();
    for case in settings.cases(20_000) {
        let topic: Arc<str> = format!("bench-options-{}", unique()).into();
        let mut changed = Vec::new();
        for (setting, change) in AMQP {
            let mut config = amqp_config(dsn, &topic);
            change(&mut config);
            let window = config.window_messages;
            let broker = AmqpMessageBroker::connect(config).await.expect("RabbitMQ");
            changed.push(Changed::new(setting, window, broker, &topic, &case));
        }
        let what = case.template.to_string();
        compare(settings, &case, "options-publish-amqp", what, &changed).await;
        delete_queues(dsn, &[&topic]).await;
    }
}

impl Changed {
    fn new(
        name: &'static str,
        window: usize,
        broker: impl MessageBroker,
        topic: &Arc<str>,
        case: &Case,
    ) -> Self {
        let (topic, template) = (Arc::clone(topic), case.template.clone());
        Self { name, window, ours: Ours { broker: Arc::new(broker), topic, template } }
    }
}

/// A small window takes fewer messages, so that its rounds end.
fn messages(case: &Case, window: usize) -> usize {
    (case.messages * window / WINDOW).clamp(200, case.messages)
}

async fn compare(
    settings: &Settings,
    case: &Case,
    scenario: &'static str,
    what: String,
    changed: &[Changed],
) {
    for &tasks in &settings.tasks {
        let sides = changed.iter().map(|changed| {
            let (window, ours) = (changed.window, &changed.ours);
            let load = Load { messages: messages(case, window).max(tasks), tasks, window };
            Side::new(changed.name, move || load.run(ours.clone()))
        });
        let what = format!("{what}, {}", crate::publish::tasks(tasks));
        settings.comparison(scenario, what, Unit::MessagesPerSecond).run(sides.collect()).await;
    }
}
