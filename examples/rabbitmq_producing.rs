//! Producing to RabbitMQ: an exchange with a queue, confirmed publishes, and an unroutable one.
//!
//! `cargo run --example rabbitmq_producing --features amqp`, after `./scripts/brokers up`

use std::error::Error;
use std::time::Duration;

use cqrs::amqp::{AmqpConfig, AmqpMessageBroker, BindingConfig, ExchangeKind, QueueConfig};
use cqrs::prelude::*;
use cqrs::{Message, PublishErrorKind};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let local = "amqp://guest:guest@localhost:5672/%2f";
    let dsn = std::env::var("AMQP_DSN").unwrap_or_else(|_| local.to_owned());
    // Safe by default: durable exchange, persistent, mandatory, confirmed, 30 s per publish.
    // `AmqpConfig::from_env()` reads the same from AMQP_DSN and its kin.
    let mut config = AmqpConfig::new(dsn.as_str());
    config.exchange.name = "orders".to_owned();
    config.exchange.kind = ExchangeKind::Topic;
    config.queues.push(QueueConfig::new("orders.audit"));
    config.bindings.push(BindingConfig::new("orders.audit", "order.*"));
    config.publish_timeout = Duration::from_secs(10);
    let broker = AmqpMessageBroker::connect(config)
        .await
        .map_err(|error| format!("{error}; `./scripts/brokers up` starts one"))?;

    // The topic is the routing key.
    broker.publish(Message::new("order.placed", r#"{"order":1}"#)).await?;
    println!("order.placed is confirmed: it is on disk in every queue bound to it");

    let error = broker.publish(Message::new("invoice.sent", "{}")).await.expect_err("no queue");
    assert_eq!(error.kind(), PublishErrorKind::Unroutable);
    println!("nobody is bound to invoice.sent: {error}");

    broker.publish(Message::new("invoice.sent", "{}").with_mandatory(false)).await?;
    println!("the same, not mandatory: confirmed, and dropped by the broker as wished");

    let report = broker.shutdown(Duration::from_secs(10)).await;
    println!("shut down, {} undelivered", report.undelivered);
    Ok(())
}
