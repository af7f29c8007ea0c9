//! The options of a subscription.

use std::sync::Arc;
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, AmqpSubscription};
use cqrs_core::Subscription;
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription};

use crate::consume::{declare, decoding, fill, ours};
use crate::measure::{Side, Unit};
use crate::raw::amqp::{EXCHANGE, delete_queues};
use crate::raw::kafka::{Topic, unique};
use crate::settings::{Case, Settings};

type Change = (&'static str, fn(Subscription) -> Subscription);

const KAFKA: [Change; 11] = [
    ("defaults", |to| to),
    ("concurrency = 4", |to| to.concurrency(4)),
    ("concurrency = 16", |to| to.concurrency(16)),
    ("concurrency = 64", |to| to.concurrency(64)),
    ("max_unsettled = 16", |to| to.max_unsettled(16)),
    ("max_unsettled = 100", |to| to.max_unsettled(100)),
    ("max_unsettled = 1000", |to| to.max_unsettled(1_000)),
    ("prefetch_bytes = 64 KiB", |to| kafka_option(to, |own| own.with_prefetch_bytes(64 << 10))),
    ("prefetch_bytes = 1 MiB", |to| kafka_option(to, |own| own.with_prefetch_bytes(1 << 20))),
    ("prefetch_bytes = 16 MiB", |to| kafka_option(to, |own| own.with_prefetch_bytes(16 << 20))),
    ("commit_interval = 100 ms", |to| {
        kafka_option(to, |own| own.with_commit_interval(Duration::from_millis(100)))
    }),
];

const AMQP: [Change; 8] = [
    ("defaults", |to| to),
    ("concurrency = 4", |to| to.concurrency(4)),
    ("concurrency = 16", |to| to.concurrency(16)),
    ("concurrency = 64", |to| to.concurrency(64)),
    ("prefetch 1", |to| prefetch(to, 1)),
    ("prefetch 64", |to| prefetch(to, 64)),
    ("prefetch 256", |to| prefetch(to, 256)),
    ("prefetch 2000", |to| prefetch(to, 2_000)),
];

fn kafka_option(
    to: Subscription,
    change: fn(KafkaSubscription) -> KafkaSubscription,
) -> Subscription {
    to.option(change(KafkaSubscription::new()))
}

fn prefetch(to: Subscription, messages: u16) -> Subscription {
    to.max_unsettled(messages.into()).option(AmqpSubscription::new().with_prefetch(messages))
}

pub(super) async fn kafka(settings: &Settings) {
    let servers = &settings.servers;
    for case in settings.event_cases(200_000) {
        let topic = Topic::create(servers, "options", case.partitions).await;
        let name = topic.name();
        let measure = async {
            let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers])).await;
            let broker = broker.expect("Kafka");
            fill(&broker, &name, case.messages, &case.template).await;
            let sides = KAFKA.map(|(option, change)| {
                let (broker, name, case) = (&broker, &name, &case);
                Side::new(option, move || {
                    let to = Subscription::to(&**name).group(format!("bench-{}", unique()));
                    let to = decoding(&case.template, change(to));
                    ours(broker.clone(), to, case.messages)
                })
            });
            compare(settings, "options-consume-kafka", case.on_kafka(), sides.into()).await;
        };
        topic.deleted_after(measure).await;
    }
}

pub(super) async fn amqp(settings: &Settings) {
    let dsn = settings.dsn.as_str();
    for case in settings.event_cases(20_000) {
        let topic: Arc<str> = format!("bench-options-{}", unique()).into();
        let mut config = AmqpConfig::new(dsn);
        config.exchange.name = EXCHANGE.to_owned();
        let broker = AmqpMessageBroker::connect(config).await.expect("RabbitMQ");
        let subscription = || Subscription::to(&*topic).group("bench");
        declare(&broker, subscription()).await;
        let sides = AMQP.map(|(option, change)| {
            let (broker, topic, case) = (&broker, &topic, &case);
            let subscription = &subscription;
            Side::new(option, move || async move {
                fill(broker, topic, messages(case, option), &case.template).await;
                let to = decoding(&case.template, change(subscription()));
                ours(broker.clone(), to, messages(case, option)).await
            })
        });
        compare(settings, "options-consume-amqp", case.template.to_string(), sides.into()).await;
        let queue = format!("{topic}.bench");
        delete_queues(dsn, &[&queue]).await;
    }
}

/// One message at a time takes longer for each.
fn messages(case: &Case, option: &str) -> usize {
    if option == "prefetch 1" { (case.messages / 10).max(64) } else { case.messages }
}

async fn compare(settings: &Settings, scenario: &'static str, what: String, sides: Vec<Side<'_>>) {
    settings.comparison(scenario, what, Unit::MessagesPerSecond).run(sides).await;
}
