//! The service that a worker runs, in its own process or in the test's.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, AmqpSubscription, DeclareMode};
use cqrs_core::{
    HandlerError, NotificationEvent, Received, Retry, Service, Subscribe, Subscription, each,
};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription, NewTopics};

use super::journal::{Journal, Mark};
use super::work::{Act, Kind, Work, WorkerOptions};
use crate::servers;

/// A broker value, connecting in the background. Without `makes_topics` Kafka makes none by being
/// published to.
///
/// # Panics
/// When it cannot be made.
pub fn broker(kind: Kind, exchange: &str, makes_topics: bool) -> Arc<dyn Subscribe> {
    match kind {
        Kind::Kafka => {
            let mut config =
                KafkaConfig::new([servers::variable("CQRS_TEST_KAFKA", "localhost:9092")]);
            config.allow_auto_create_topics = makes_topics;
            Arc::new(KafkaMessageBroker::new(config).expect("a Kafka broker value"))
        }
        Kind::Amqp => {
            let dsn = "amqp://guest:guest@localhost:5672/%2f";
            let mut config = AmqpConfig::new(servers::variable("CQRS_TEST_AMQP", dsn));
            config.exchange.name = exchange.into();
            Arc::new(AmqpMessageBroker::new(config).expect("a RabbitMQ broker value"))
        }
    }
}

/// The subscription of `options`.
pub fn subscription(options: &WorkerOptions) -> Subscription {
    let ms = |all: &[u64]| all.iter().copied().map(Duration::from_millis).collect::<Vec<_>>();
    let retry = Retry::none().immediate(ms(&options.immediate_ms)).delayed(ms(&options.delayed_ms));
    let mut kafka = KafkaSubscription::new()
        .with_session_timeout(Duration::from_millis(options.session_timeout_ms))
        .with_max_poll_interval(Duration::from_millis(options.max_poll_interval_ms))
        .with_revoke_drain(Duration::from_millis(options.revoke_drain_ms))
        .with_create_topics(options.makes_dead_letter_target.then(NewTopics::new));
    if let Some(instance) = &options.instance {
        kafka = kafka.with_group_instance_id(instance.clone());
    }
    let subscription = Subscription::to(options.topic.clone())
        .group(options.group.clone())
        .json::<Work>()
        .concurrency(options.concurrency)
        .retry(retry)
        .max_crashes(options.max_crashes)
        .option(kafka);
    let subscription = match options.makes_dead_letter_target {
        true => subscription,
        false => subscription.option(AmqpSubscription::new().with_declare(DeclareMode::Passive)),
    };
    match options.max_unsettled {
        Some(max) => subscription.max_unsettled(max),
        None => subscription,
    }
}

/// The service of `options`; its handlers write to `journal`.
///
/// # Panics
/// When it is wired wrongly.
pub fn service(
    options: &WorkerOptions,
    broker: Arc<dyn Subscribe>,
    journal: Arc<Journal>,
) -> Service {
    let (hurry, range) = (options.hurry, options.handler_ms);
    let handler = each(move |event: NotificationEvent<Work>, received: Received| {
        let journal = Arc::clone(&journal);
        async move { handle(&journal, &event.payload, &received, range, hurry).await }
    });
    Service::builder(broker)
        .subscribe(subscription(options), handler)
        .drain_timeout(Duration::from_millis(options.drain_ms))
        .build()
        .expect("a service")
}

async fn handle(
    journal: &Journal,
    work: &Work,
    received: &Received,
    range: (u64, u64),
    hurry: bool,
) -> Result<(), HandlerError> {
    journal.write(Mark::Start, work, received);
    let time = match work.act {
        Act::Take(ms) if !hurry => ms,
        _ => {
            let mut hasher = DefaultHasher::new();
            (&work.key, work.seq, received.attempt()).hash(&mut hasher);
            range.0 + hasher.finish() % (range.1 - range.0 + 1)
        }
    };
    if time > 0 {
        tokio::time::sleep(Duration::from_millis(time)).await;
    }
    let failed = || {
        journal.write(Mark::Fail, work, received);
        format!("{:?} of {} on attempt {}", work.act, work.key, received.attempt())
    };
    match work.act {
        Act::Fail(times) if received.attempt() <= times => Err(HandlerError::retryable(failed())),
        Act::Permanent => Err(HandlerError::permanent(failed())),
        Act::Panic => panic!("{}", failed()),
        Act::Abort => std::process::abort(),
        Act::Succeed | Act::Take(_) | Act::Fail(_) => {
            journal.write(Mark::End, work, received);
            Ok(())
        }
    }
}
