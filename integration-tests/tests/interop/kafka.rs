//! [`KafkaTopic`]: a Kafka topic in the interop tests.

use std::time::Duration;

use cqrs_core::{NotificationEvent, Retry, Subscription};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use integration_tests::consuming::fixture::until;
use integration_tests::interop::{CORRELATION, UserCreated, hex};
use integration_tests::kafka::{Raw, create_topic, delete_topics, fresh_topic, read_raw};
use integration_tests::peers::{Peer, Python};
use integration_tests::servers;
use serde_json::{Value, json};

use super::TestTopic;
use super::undecodable::CUT;

const THE_KEY: &str = "the key";

/// Of one partition, so that its order is that of publishing.
pub(super) struct KafkaTopic {
    name: String,
}

pub(super) fn broker() -> KafkaMessageBroker {
    KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap()
}

/// For a test's only member; a group of more waits for nothing either.
pub(super) fn subscription(topic: &str, group: &str) -> Subscription {
    let options =
        KafkaSubscription::python_compatible().with_commit_interval(Duration::from_millis(100));
    Subscription::to(topic).group(group).retry(Retry::none()).option(options)
}

impl TestTopic for KafkaTopic {
    type Broker = KafkaMessageBroker;

    const NAME: &'static str = "kafka";
    const READS: &'static [&'static str] = &["value_deserializer", "decoder"];
    const BAD: &'static [Option<&'static [u8]>] =
        &[None, Some(b""), Some(b"null"), Some(b"[]"), Some(CUT)];
    // Of a tombstone FastStream makes b"" behind the deserializer's back, which is no body of the handler:
    // an error in its log. The manual's decoder makes it None again.
    const BAD_READS: &'static [(&'static str, usize)] = &[("value_deserializer", 1), ("manual", 0)];
    const KEY: Option<&'static str> = Some(THE_KEY);
    const PROTOBUF: Option<&'static str> = None;

    async fn like(_python: Python) -> Self {
        let name = fresh_topic("interop");
        // The records have the times of their events, some of which are long past.
        create_topic(&name, 1, &[("retention.ms", "-1")]).await;
        Self { name }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn broker(&self) -> KafkaMessageBroker {
        broker()
    }

    fn subscription(&self) -> Subscription {
        subscription(&self.name, &format!("g-{}", self.name))
    }

    fn target(&self) -> Value {
        json!({ "broker": Self::NAME, "address": servers::kafka(), "topic": self.name })
    }

    fn source(&self, python: Python) -> Value {
        let mut source = json!({ "address": servers::kafka(), "topic": self.name });
        if python == Python::FastStream {
            source["group"] = format!("stream-{}", self.name).into();
        }
        source
    }

    async fn send(&self, bodies: &[Option<&[u8]>]) {
        let record =
            |body: &Option<&[u8]>| json!({ "key": hex(THE_KEY.as_bytes()), "body": body.map(hex) });
        let records: Vec<_> = bodies.iter().map(record).collect();
        let request =
            json!({ "address": servers::kafka(), "topic": self.name, "records": records });
        Peer::shared(Python::Cqrs5).call("send_kafka", request).await;
    }

    async fn written(&self) -> Vec<Raw> {
        read_raw(&self.name).await.into_iter().map(|(_, record)| record).collect()
    }

    async fn dead_letters(&self, count: usize) -> Vec<(Option<Vec<u8>>, String)> {
        let dead = format!("{0}.g-{0}.dead", self.name);
        until("the dead letters", async || read_raw(&dead).await.len() >= count).await;
        let letters = read_raw(&dead).await.into_iter().map(|(_, letter)| {
            assert_eq!(letter.key.as_deref(), Some(THE_KEY.as_bytes()));
            let mut headers = letter.headers.into_iter();
            let reason = headers.find(|(name, _)| name == "cqrs-dead-letter-reason");
            (letter.body, String::from_utf8(reason.unwrap().1.unwrap()).unwrap())
        });
        letters.collect()
    }

    fn assert_frame(_: Python, received: &Value, _: &NotificationEvent<UserCreated>) {
        assert_eq!(received["headers"], json!([["correlation_id", CORRELATION]]));
        // With one, FastStream would decode a second time what the deserializer made of the body.
        assert_eq!(received["content_type"], Value::Null);
    }

    async fn clean(self) {
        delete_topics(&self.name).await;
    }
}
