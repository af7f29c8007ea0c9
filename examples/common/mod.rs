//! What stands behind the examples: the broker that `--broker memory | kafka | amqp` asks for, and how a
//! service is started and waited for.
#![allow(dead_code, unused_imports)] // each example needs its own part

#[cfg(feature = "amqp")]
mod amqp;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(any(not(feature = "kafka"), not(feature = "amqp")))]
mod missing;
mod running;

#[cfg(not(feature = "amqp"))]
use missing::amqp;
#[cfg(not(feature = "kafka"))]
use missing::kafka;

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs::consume::DeadLetter;
use cqrs::prelude::*;
use cqrs::{MemoryBroker, Message};
use cqrs_testkit::Probe;
pub(crate) use running::{start, until};

/// How long an example waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Fallible<T> = Result<T, Box<dyn Error>>;

/// A broker, and topics of this run's own on it.
pub(crate) struct Wire {
    pub(crate) name: &'static str,
    pub(crate) broker: Arc<dyn Subscribe>,
    server: Server,
    topics: Mutex<Vec<String>>,
}

/// What only one kind of broker can do.
enum Server {
    Memory(MemoryBroker),
    Kafka(kafka::Server),
    Amqp(amqp::Server),
}

impl Wire {
    /// Opens what the command line asks for; the in-memory broker by default.
    pub(crate) async fn open() -> Fallible<Self> {
        let (name, broker, server): (_, Arc<dyn Subscribe>, _) = match wanted()?.as_str() {
            "memory" => {
                let broker = MemoryBroker::new();
                ("the in-memory broker", Arc::new(broker.clone()), Server::Memory(broker))
            }
            "kafka" => {
                let (broker, server) = kafka::open().await?;
                ("Apache Kafka", broker, Server::Kafka(server))
            }
            "amqp" => {
                let (broker, server) = amqp::open().await?;
                ("RabbitMQ", broker, Server::Amqp(server))
            }
            other => return Err(format!("no broker {other:?}: use memory, kafka or amqp").into()),
        };
        Ok(Self { name, broker, server, topics: Mutex::default() })
    }

    pub(crate) fn broker(&self) -> Arc<dyn Subscribe> {
        Arc::clone(&self.broker)
    }

    /// A topic that is there. On a real broker it has a name of this run's own, so that it holds nothing
    /// of an earlier one.
    pub(crate) async fn topic(&self, name: &str) -> Fallible<String> {
        let own = format!("{name}.{}", std::process::id());
        let topic = match &self.server {
            Server::Memory(_) => name.to_owned(),
            Server::Kafka(server) => server.create(own).await?,
            Server::Amqp(_) => own, // its queue comes with the subscription
        };
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.push(topic.clone());
        Ok(topic)
    }

    /// Publishes an event to `topic`, as another service would.
    pub(crate) async fn publish<P: Notification>(&self, topic: &str, event: P) -> Fallible<()> {
        let other = Mediator::builder().broker(self.broker()).build()?;
        let event = NotificationEvent::new(event).with_topic(topic.to_owned());
        Ok(other.emitter().emit(event).await?)
    }

    /// Publishes bytes that may be no event.
    pub(crate) async fn publish_bytes(&self, topic: &str, body: impl AsRef<[u8]>) -> Fallible<()> {
        self.broker.publish(Message::new(topic, body.as_ref().to_vec())).await?;
        Ok(())
    }

    /// Reads `n` dead letters of `group`, and what the messages held.
    pub(crate) async fn dead_letters(
        &self,
        topic: &str,
        group: &str,
        n: usize,
    ) -> Fallible<Vec<(DeadLetter, String)>> {
        let dead = format!("{topic}.{group}.dead");
        let mut probe = match &self.server {
            Server::Memory(broker) => Probe::memory(broker, &dead),
            Server::Kafka(server) => server.probe(&dead).await?,
            Server::Amqp(server) => server.probe(&dead).await?,
        };
        let mut letters = Vec::new();
        for message in probe.take(n, PATIENCE).await {
            letters.push((DeadLetter::from_headers(&message.headers)?, message.text()));
        }
        match letters.len() {
            found if found < n => Err(format!("{found} of {n} dead letters are in {dead}").into()),
            _ => Ok(letters),
        }
    }

    /// Deletes what this run has made for `group` on a real broker, and leaves it.
    pub(crate) async fn tidy_up(&self, group: &str, retry: &Retry) -> Fallible<()> {
        let _left = self.broker.shutdown(Duration::from_secs(10)).await;
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match &self.server {
            Server::Memory(_) => Ok(()),
            Server::Kafka(server) => server.delete(&topics, group).await,
            Server::Amqp(server) => server.delete(&topics, group, retry).await,
        }
    }
}

fn wanted() -> Fallible<String> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, ..) => Ok("memory".to_owned()),
        (Some("--broker"), Some(broker), None) => Ok(broker),
        _ => Err("usage: [--broker memory|kafka|amqp]".into()),
    }
}
