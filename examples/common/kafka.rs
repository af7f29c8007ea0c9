use std::env;
use std::sync::Arc;

use cqrs::kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs::prelude::*;
use cqrs_testkit::Probe;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::Fallible;

/// Makes and deletes topics; a service finds them there.
pub(crate) struct Server {
    servers: String,
    admin: AdminClient<DefaultClientContext>,
}

pub(crate) async fn open() -> Fallible<(Arc<dyn Subscribe>, Server)> {
    let servers = env::var("CQRS_TEST_KAFKA").unwrap_or_else(|_| "localhost:9092".to_owned());
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers.as_str()]))
        .await
        .map_err(|error| format!("{error}; `./scripts/brokers up` starts one"))?;
    let admin = ClientConfig::new().set("bootstrap.servers", &servers).create()?;
    Ok((Arc::new(broker), Server { servers, admin }))
}

impl Server {
    pub(crate) async fn create(&self, topic: String) -> Fallible<String> {
        let new = NewTopic::new(&topic, 3, TopicReplication::Fixed(1));
        for made in self.admin.create_topics([&new], &AdminOptions::new()).await? {
            made.map_err(|(topic, code)| format!("{topic} is not made: {code}"))?;
        }
        Ok(topic)
    }

    pub(crate) async fn probe(&self, topic: &str) -> Fallible<Probe> {
        Ok(Probe::kafka(&self.servers, topic).await?)
    }

    pub(crate) async fn delete(&self, topics: &[String], group: &str) -> Fallible<()> {
        let dead = topics.iter().map(|topic| format!("{topic}.{group}.dead"));
        let all: Vec<String> = topics.iter().cloned().chain(dead).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        // Not every run has dead letters: what is not there need not be deleted.
        let _deleted = self.admin.delete_topics(&all, &AdminOptions::new()).await?;
        Ok(())
    }
}
