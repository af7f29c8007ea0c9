//! Interop tests with the real python-cqrs and FastStream: each case over Kafka and over RabbitMQ.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

/// Defines the tests of cases that hold on both brokers.
macro_rules! on_both_brokers {
    ($($case:ident),* $(,)?) => {
        mod on_kafka {
            $(#[tokio::test]
            async fn $case() {
                super::$case::<crate::kafka::KafkaTopic>().await;
            })*
        }

        mod on_amqp {
            $(#[tokio::test]
            async fn $case() {
                super::$case::<crate::amqp::Topology>().await;
            })*
        }
    };
}

mod amqp;
mod declaring;
mod groups;
mod kafka;
mod plain_json;
mod protobuf;
mod reading;
mod tables;
mod undecodable;
mod writing;

use cqrs_core::{MessageBroker, NotificationEvent, Subscribe, Subscription};
use integration_tests::interop::{CORRELATION, TestService, UserCreated};
use integration_tests::kafka::Raw;
use integration_tests::peers::{Inbox, Peer, Python};
use serde::Serialize;
use serde_json::{Value, json};

/// A topic of a test on one of the brokers, and the requests to the peers that use it.
trait TestTopic: Sized {
    type Broker: MessageBroker + Subscribe;

    /// The broker's name in requests.
    const NAME: &'static str;
    /// The options of FastStream into which a deserializer goes.
    const READS: &'static [&'static str];
    /// Bodies that are no event; `None` is a tombstone.
    const BAD: &'static [Option<&'static [u8]>];
    /// Where FastStream has the deserializer of `BAD`, and the first of them that reaches it.
    const BAD_READS: &'static [(&'static str, usize)];
    /// The key of the messages that FastStream publishes.
    const KEY: Option<&'static str>;
    /// The content type of Protobuf events.
    const PROTOBUF: Option<&'static str>;

    /// A fresh one, declared as the peer does.
    async fn like(python: Python) -> Self;

    fn name(&self) -> &str;

    fn broker(&self) -> Self::Broker;

    /// Without a decoder.
    fn subscription(&self) -> Subscription;

    /// The parts of a request to publish that say where.
    fn target(&self) -> Value;

    /// The parts of a request to consume that say where.
    fn source(&self, python: Python) -> Value;

    /// Lets the broker's client for Python publish bodies as they are.
    async fn send(&self, bodies: &[Option<&[u8]>]);

    /// All messages, or those since the last call.
    async fn written(&self) -> Vec<Raw>;

    /// The bodies and reasons of the dead letters, of which there are at least `count`. The service is stopped.
    async fn dead_letters(&self, count: usize) -> Vec<(Option<Vec<u8>>, String)>;

    /// Checks what a peer says of our message beside the event.
    fn assert_frame(python: Python, received: &Value, event: &NotificationEvent<UserCreated>);

    async fn clean(self);

    async fn service(&self) -> TestService<UserCreated> {
        TestService::open(self.broker(), self.subscription().json::<UserCreated>()).await
    }

    /// Lets a peer consume into `model`; FastStream with the deserializer in the option `read`.
    async fn inbox(
        &self,
        python: Python,
        model: Option<&str>,
        read: Option<&str>,
    ) -> Inbox<'static> {
        let mut request = self.source(python);
        request["model"] = model.into();
        let program = match python {
            Python::FastStream => {
                request["read"] = read.into();
                "faststream"
            }
            _ => "consume",
        };
        Peer::shared(python).subscribe(&format!("{program}_{}", Self::NAME), request).await
    }

    /// Lets python-cqrs publish, and returns its description of the events.
    async fn publish(&self, python: Python, style: &str, events: Vec<Value>) -> Value {
        let mut request = self.target();
        request["style"] = style.into();
        request["events"] = events.into();
        Peer::shared(python).call("publish", request).await
    }

    /// Lets FastStream publish bodies: dicts, or those of a model.
    async fn stream<B: Serialize>(&self, bodies: &[B], model: Option<&str>) {
        let mut request = self.target();
        request["bodies"] = json!(bodies);
        request["model"] = model.into();
        request["correlation_id"] = CORRELATION.into();
        request["key"] = Self::KEY.into();
        Peer::shared(Python::FastStream).call("faststream_publish", request).await;
    }
}
