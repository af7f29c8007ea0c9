//! Test of the log of a clean run: no warning from a first start to a stop, of the crates or of their clients.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use std::sync::Arc;
use std::time::Duration;

use cqrs_amqp::AmqpMessageBroker;
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, MessageBrokerExt, NotificationEvent, Scope, Service,
    Subscribe, Subscription,
};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_macros::Notification;
use integration_tests::consuming::fixture::until;
use integration_tests::{amqp, kafka, log, servers};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", key = "number")]
struct Counted {
    number: u32,
}

struct Ignore;

impl EventHandler<Counted> for Ignore {
    async fn handle(&self, _: &Counted, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// Starts a service with the defaults, handles an event, idles, and stops. Then returns what was logged.
async fn run(broker: Arc<dyn Subscribe>, topic: &str) -> String {
    let events = EventMediator::builder()
        .event::<Counted, _>(Ignore)
        .broker(Arc::clone(&broker))
        .build()
        .unwrap();
    let subscription = Subscription::to(topic).group("g").json::<Counted>();
    let service = Service::builder(broker.clone()).subscribe(subscription, events.clone());
    let service = service.build().unwrap();
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    until("the subscription to be ready", async || health.is_ready()).await;
    let event = NotificationEvent::new(Counted { number: 1 }).with_topic(topic.to_owned());
    broker.publish_event(event).await.unwrap();
    until("the event to be handled", async || health.subscriptions()[0].counts.handled == 1).await;
    // Idle, as long as a heartbeat takes.
    tokio::time::sleep(Duration::from_secs(12)).await;
    stop.stop();
    running.await.unwrap().unwrap();
    assert_eq!(events.shutdown(Duration::from_secs(10)).await.undelivered, 0);
    drop((events, broker));
    // What the clients log when they end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    log::captured()
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_run_logs_no_warning() {
    log::show_warnings();
    let (exchange, topic) = (amqp::fresh("quiet"), kafka::fresh_topic("quiet"));
    let rabbitmq = AmqpMessageBroker::connect(amqp::config(&exchange)).await.unwrap();
    let logged = run(Arc::new(rabbitmq), &topic).await;
    let queue = format!("{topic}.g");
    let own = [".retry.10s", ".retry.60s", ".retry.300s", ".dead", ".quarantine", ""];
    let queues = own.map(|name| format!("{queue}{name}"));
    let queues: Vec<_> = queues.iter().map(String::as_str).collect();
    amqp::Raw::connect().await.clean(&queues, &[&exchange]).await;
    assert_eq!(logged, "", "RabbitMQ");

    kafka::create_topic(&topic, 1, &[]).await;
    let kafka = KafkaMessageBroker::connect(KafkaConfig::new([servers::kafka()])).await.unwrap();
    let logged = run(Arc::new(kafka), &topic).await;
    kafka::delete_topics(&topic).await;
    assert_eq!(logged, "", "Kafka");
}
