//! Creation of retry and dead-letter topics, each like the topic of the records that are copied to it. Used by the
//! [`copies`](super::copies).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::config::{KafkaConfig, NewTopics};
use crate::error::{ErrorKind, KafkaError, of_code};
use crate::events::Events;
use crate::health::Health;

/// The timeout for creating topics.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(10);
/// Room for the headers that a copy adds to its record.
const ROOM: i64 = 64 << 10;
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// Creates topics, each with the number of partitions and the size limit of another one, and room for the headers of a
/// copy. An existing topic is left as it is.
pub(super) async fn create_topics(
    config: &KafkaConfig,
    create: NewTopics,
    topics: &[(String, String)],
) -> Result<(), KafkaError> {
    let options = config.to_admin_config()?;
    let events = Events::new(config, Arc::new(Health::new(TOPIC_TIMEOUT)));
    let redacted = events.clone();
    let sources: HashSet<String> = topics.iter().map(|(_, like)| like.clone()).collect();
    let names = sources.clone();
    let looked_up = tokio::task::spawn_blocking(move || {
        let admin: AdminClient<Events> = options.create_with_context(events)?;
        let count =
            |topic: &str| create.partitions.or_else(|| partitions(&admin, topic)).unwrap_or(-1);
        let partitions: HashMap<String, i32> =
            names.into_iter().map(|topic| (topic.clone(), count(&topic))).collect();
        Ok((admin, partitions))
    });
    let broker_error = |error: rdkafka::error::KafkaError| {
        KafkaError::new(ErrorKind::Broker, redacted.reason(error))
    };
    let (admin, partitions) = match looked_up.await {
        Ok(found) => found.map_err(broker_error)?,
        Err(_cancelled) => {
            return Err(KafkaError::new(
                ErrorKind::Broker,
                "the look-up of the topic was cancelled",
            ));
        }
    };
    let limits = size_limits(&admin, &sources).await;
    let replicas = create.replication.unwrap_or(-1);
    let new = |with_limit: bool| {
        let mut all = Vec::new();
        for (topic, like) in topics {
            let partitions = partitions.get(like).copied().unwrap_or(-1);
            let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
            if let Some(limit) = limits.get(like).filter(|_| with_limit) {
                new = new.set(MAX_MESSAGE_BYTES, limit);
            }
            all.push(new);
        }
        all
    };
    let options = options_of_admin();
    let mut created = admin.create_topics(&new(true), &options).await.map_err(&broker_error)?;
    let refuses_limit = |result: &Result<_, (_, Code)>| {
        matches!(result, Err((_, Code::InvalidConfig | Code::PolicyViolation)))
    };
    if !limits.is_empty() && created.iter().any(refuses_limit) {
        // Some clusters allow no topic settings.
        created = admin.create_topics(&new(false), &options).await.map_err(&broker_error)?;
    }
    // Destroying a client blocks until its threads end.
    tokio::task::spawn_blocking(move || drop(admin));
    for result in created {
        match result {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                return Err(of_code(code, format!("topic {topic}: {code}")));
            }
        }
    }
    Ok(())
}

fn options_of_admin() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TOPIC_TIMEOUT)).operation_timeout(Some(TOPIC_TIMEOUT))
}

/// The size limits for copies of these topics, as far as this principal may read the topics' settings.
async fn size_limits(
    admin: &AdminClient<Events>,
    topics: &HashSet<String>,
) -> HashMap<String, String> {
    let all: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let Ok(found) = admin.describe_configs(&all, &options_of_admin()).await else {
        return HashMap::new();
    };
    // Not in the order of the request: Kafka first returns the topics that this principal may read.
    let limit = |found: ConfigResource| {
        let limit = found.get(MAX_MESSAGE_BYTES)?.value.as_ref()?.parse::<i64>().ok()?;
        let OwnedResourceSpecifier::Topic(topic) = found.specifier else { return None };
        Some((topic, (limit + ROOM).min(i32::MAX.into()).to_string()))
    };
    found.into_iter().flatten().filter_map(limit).collect()
}

/// The number of partitions of a topic; blocks. Asks for all topics, since asking for one would create it.
fn partitions(admin: &AdminClient<Events>, topic: &str) -> Option<i32> {
    let metadata = admin.inner().fetch_metadata(None, TOPIC_TIMEOUT).ok()?;
    let found = metadata.topics().iter().find(|known| known.name() == topic)?;
    i32::try_from(found.partitions().len()).ok().filter(|count| *count > 0)
}
