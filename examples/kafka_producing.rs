//! Producing to Kafka: options, a confirmed publish, many at once in order, and what an error says.
//!
//! `cargo run --example kafka_producing --features kafka`, after `./scripts/brokers up`

use std::error::Error;
use std::time::Duration;

use cqrs::Message;
use cqrs::kafka::{Compression, KafkaConfig, KafkaMessageBroker};
use cqrs::prelude::*;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let servers =
        std::env::var("KAFKA_BOOTSTRAP_SERVERS").unwrap_or_else(|_| "localhost:9092".to_owned());
    // Safe by default: acks=all, idempotent, the Java client's partitioner, 30 s per publish.
    // `KafkaConfig::from_env()` reads the same from KAFKA_BOOTSTRAP_SERVERS and its kin.
    let mut config = KafkaConfig::new([servers]).with_client_id("orders");
    config.compression = Compression::Lz4;
    config.publish_timeout = Duration::from_secs(10);
    let broker = KafkaMessageBroker::connect(config)
        .await
        .map_err(|error| format!("{error}; `./scripts/brokers up` starts one"))?;

    let placed =
        broker.publish(Message::new("orders", r#"{"order":1}"#).with_key("order-1")).await?;
    println!("confirmed in partition {:?} at offset {:?}", placed.partition, placed.offset);

    // The order of one key is fixed when `enqueue` resolves; the confirms stream in behind.
    let mut receipts = Vec::new();
    for step in 0..1_000 {
        let body = format!(r#"{{"order":1,"step":{step}}}"#);
        receipts.push(broker.enqueue(Message::new("orders", body).with_key("order-1")).await?);
    }
    let mut last = None;
    for receipt in receipts {
        let confirmation = receipt.await?;
        assert!(confirmation.offset > last, "in order");
        last = confirmation.offset;
    }
    println!("1000 more confirmed in order, the last at offset {last:?}");

    let error = broker.publish(Message::new("no such topic!", "{}")).await.expect_err("a bad name");
    println!("a bad topic name: {error}");

    let report = broker.shutdown(Duration::from_secs(10)).await;
    println!("shut down, {} undelivered", report.undelivered);
    Ok(())
}
