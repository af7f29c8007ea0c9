//! Interop tests with the real python-cqrs and FastStream over RabbitMQ.

mod declaring;
mod protobuf;
mod reading;
mod undecodable;
mod writing;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, AmqpSubscription, DeclareMode};
use cqrs_core::{NotificationEvent, Retry, Subscription};
use integration_tests::amqp::{self, Raw, fresh};
use integration_tests::interop::{CORRELATION, TestService, UserCreated, hex};
use integration_tests::peers::{Inbox, Peer, Python};
use serde_json::{Value, json};

/// The topology of a test: a topic, which is the name of its queue and of its exchange.
struct Topology {
    topic: String,
    mode: DeclareMode,
}

impl Topology {
    /// Declared as python-cqrs does.
    fn python(test: &str) -> Self {
        Self { topic: fresh(test), mode: DeclareMode::PythonCompatible }
    }

    /// Declared as FastStream does.
    fn faststream(test: &str) -> Self {
        Self { topic: fresh(test), mode: DeclareMode::Declare }
    }

    fn config(&self) -> AmqpConfig {
        let mut config = amqp::config(&self.topic);
        config.declare = self.mode;
        // In the order of publishing, whatever the key.
        config.channels_per_connection = 1;
        config
    }

    fn broker(&self) -> AmqpMessageBroker {
        AmqpMessageBroker::new(self.config()).unwrap()
    }

    fn options(&self) -> AmqpSubscription {
        match self.mode {
            DeclareMode::PythonCompatible => AmqpSubscription::python_compatible(),
            _ => AmqpSubscription::faststream_compatible(),
        }
    }

    fn subscription(&self) -> Subscription {
        let subscription = Subscription::to(&*self.topic).group("ours").json::<UserCreated>();
        subscription.retry(Retry::none()).option(self.options())
    }

    async fn service(&self) -> TestService<UserCreated> {
        TestService::open(self.broker(), self.subscription()).await
    }

    /// Lets a peer consume.
    async fn inbox<'p>(&self, peer: &'p Peer, what: &str, mut arguments: Value) -> Inbox<'p> {
        arguments["address"] = amqp::dsn().into();
        arguments["queue"] = self.topic.as_str().into();
        if what == "faststream_amqp" {
            arguments["exchange"] = self.topic.as_str().into();
        }
        peer.subscribe(what, arguments).await
    }

    /// Lets python-cqrs publish, and returns its description of the events.
    async fn publish(&self, python: Python, style: &str, events: Vec<Value>) -> Value {
        let arguments = json!({
            "broker": "amqp", "address": amqp::dsn(), "exchange": self.topic, "topic": self.topic,
            "style": style, "events": events,
        });
        Peer::shared(python).call("publish", arguments).await
    }

    /// Lets FastStream publish.
    async fn stream(&self, events: &[NotificationEvent<UserCreated>], as_model: bool) {
        let arguments = json!({
            "broker": "amqp", "address": amqp::dsn(), "exchange": self.topic, "topic": self.topic,
            "bodies": events, "as_model": as_model, "correlation_id": CORRELATION,
        });
        Peer::shared(Python::FastStream).call("faststream_publish", arguments).await;
    }

    /// Lets aio-pika publish bodies as they are.
    async fn send(&self, bodies: &[&[u8]]) {
        let bodies: Vec<_> = bodies.iter().map(|body| hex(body)).collect();
        let arguments = json!({
            "address": amqp::dsn(), "exchange": self.topic, "routing_key": self.topic,
            "bodies": bodies,
        });
        Peer::shared(Python::Cqrs5).call("send_amqp", arguments).await;
    }

    async fn clean(self) {
        let dead = format!("{}.dead", self.topic);
        Raw::connect().await.clean(&[&self.topic, &dead], &[&self.topic]).await;
    }
}
