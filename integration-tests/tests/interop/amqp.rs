//! [`Topology`]: a RabbitMQ exchange and its queue in the interop tests.

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, AmqpSubscription, DeclareMode};
use cqrs_core::{NotificationEvent, Retry, Subscription};
use integration_tests::amqp::{self, fresh, header};
use integration_tests::interop::{CORRELATION, UserCreated, hex};
use integration_tests::kafka::Raw;
use integration_tests::peers::{Peer, Python};
use serde_json::{Value, json};

use super::TestTopic;
use super::undecodable::CUT;

/// A topic, which is the name of its queue and of its exchange.
pub(super) struct Topology {
    pub(super) topic: String,
    mode: DeclareMode,
}

impl Topology {
    /// Declared as python-cqrs does.
    pub(super) fn python() -> Self {
        Self { topic: fresh("interop"), mode: DeclareMode::PythonCompatible }
    }

    /// Declared as FastStream does.
    pub(super) fn faststream() -> Self {
        Self { topic: fresh("interop"), mode: DeclareMode::Declare }
    }

    pub(super) fn config(&self) -> AmqpConfig {
        let mut config = amqp::config(&self.topic);
        config.declare = self.mode;
        // In the order of publishing, whatever the key.
        config.channels_per_connection = 1;
        config
    }

    pub(super) fn options(&self) -> AmqpSubscription {
        match self.mode {
            DeclareMode::PythonCompatible => AmqpSubscription::python_compatible(),
            _ => AmqpSubscription::faststream_compatible(),
        }
    }
}

impl TestTopic for Topology {
    type Broker = AmqpMessageBroker;

    const NAME: &'static str = "amqp";
    // With the one that the manual of python-cqrs names, `parser`, FastStream 0.7 cannot work.
    const READS: &'static [&'static str] = &["decoder"];
    const BAD: &'static [Option<&'static [u8]>] =
        &[Some(b""), Some(b"null"), Some(b"[]"), Some(CUT)];
    const BAD_READS: &'static [(&'static str, usize)] = &[("decoder", 0)];
    const KEY: Option<&'static str> = None;
    const PROTOBUF: Option<&'static str> = Some("application/x-protobuf");

    async fn like(python: Python) -> Self {
        match python {
            Python::FastStream => Self::faststream(),
            _ => Self::python(),
        }
    }

    fn name(&self) -> &str {
        &self.topic
    }

    fn broker(&self) -> AmqpMessageBroker {
        AmqpMessageBroker::new(self.config()).unwrap()
    }

    fn subscription(&self) -> Subscription {
        let subscription = Subscription::to(&*self.topic).group("ours");
        subscription.retry(Retry::none()).option(self.options())
    }

    fn target(&self) -> Value {
        json!({
            "broker": Self::NAME, "address": amqp::dsn(), "exchange": self.topic,
            "topic": self.topic,
        })
    }

    fn source(&self, python: Python) -> Value {
        let mut source = json!({ "address": amqp::dsn(), "queue": self.topic });
        if python == Python::FastStream {
            source["exchange"] = self.topic.as_str().into();
        }
        source
    }

    async fn send(&self, bodies: &[Option<&[u8]>]) {
        let bodies: Vec<_> = bodies.iter().map(|body| body.map(hex)).collect();
        let request = json!({
            "address": amqp::dsn(), "exchange": self.topic, "routing_key": self.topic,
            "bodies": bodies,
        });
        Peer::shared(Python::Cqrs5).call("send_amqp", request).await;
    }

    async fn written(&self) -> Vec<Raw> {
        let raw = amqp::Raw::connect().await;
        let drained = raw.drain(&self.topic).await.into_iter().map(|message| Raw {
            body: Some(message.data),
            headers: match message.properties.headers() {
                Some(headers) => {
                    headers.inner().keys().map(|name| (name.to_string(), None)).collect()
                }
                None => Vec::new(),
            },
            ..Default::default()
        });
        let drained = drained.collect();
        raw.clean(&[], &[]).await;
        drained
    }

    async fn dead_letters(&self, _count: usize) -> Vec<(Option<Vec<u8>>, String)> {
        let raw = amqp::Raw::connect().await;
        assert_eq!(raw.count(&self.topic).await, 0, "all are settled");
        let dead = raw.drain(&format!("{}.dead", self.topic)).await;
        raw.clean(&[], &[]).await;
        let reason = |letter: &_| header(letter, "cqrs-dead-letter-reason").unwrap();
        dead.into_iter().map(|letter| (Some(letter.data.clone()), reason(&letter))).collect()
    }

    fn assert_frame(python: Python, received: &Value, event: &NotificationEvent<UserCreated>) {
        assert_eq!(received["correlation_id"], CORRELATION);
        assert_eq!(received["content_type"], "application/json");
        let key = ["message_key", event.payload.user_id.as_str()];
        assert_eq!(received["headers"], json!([["correlation_id", CORRELATION], key]));
        if python != Python::FastStream {
            assert_eq!(received["message_id"], json!(event.event_id));
        }
    }

    async fn clean(self) {
        let dead = format!("{}.dead", self.topic);
        amqp::Raw::connect().await.clean(&[&self.topic, &dead], &[&self.topic]).await;
    }
}
