//! Confirmed copies of consumed records: retry copies and dead letters, and the topics they go to.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cqrs_core::Message;
use cqrs_core::consume::SettleError;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::OnceCell;

use super::NewTopics;
use super::record::RawHeader;
use crate::events::Events;
use crate::health::Health;
use crate::producer::{Driver, Link, Raw};
use crate::{Acks, ErrorKind, KafkaConfig, KafkaError};

/// How long making a topic may take.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of the broker's producer that a confirmed copy does not give up.
const WEAKER: [&str; 7] = [
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "retries",
    "message.send.max.retries",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
];

/// The producer of copies. Shared by all subscriptions of a broker value; made when the first copy is
/// written.
///
/// It is not the broker's own: that one may be set to give up confirms or idempotence, and is shut down
/// apart from the subscriptions.
pub(crate) struct CopyLink {
    config: KafkaConfig,
    link: Mutex<Option<Arc<Link>>>,
}

impl CopyLink {
    pub(crate) fn new(config: &KafkaConfig) -> Self {
        let mut config = config.clone();
        config.acks = Acks::All;
        config.enable_idempotence = true;
        config.max_in_flight_requests_per_connection = 5;
        config.retries = None;
        // What could be consumed can be copied; the broker has the last word.
        config.message_max_bytes = 999_000_000;
        config.raw.retain(|name, _| !WEAKER.contains(&name.as_str()));
        Self { config, link: Mutex::default() }
    }

    fn link(&self) -> Result<Arc<Link>, KafkaError> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = &*link {
            return Ok(Arc::clone(link));
        }
        let made = Driver::start(&self.config)?;
        Ok(Arc::clone(link.insert(made)))
    }
}

impl Drop for CopyLink {
    fn drop(&mut self) {
        if let Some(link) = self.link.get_mut().unwrap_or_else(PoisonError::into_inner) {
            link.close(self.config.publish_timeout);
        }
    }
}

/// Writes the copies of one subscription.
pub(super) struct Copies {
    link: Arc<CopyLink>,
    create: Option<NewTopics>,
    /// Topics that are known to exist, or are being made: one try for all who need it.
    made: Mutex<HashMap<Arc<str>, Made>>,
}

/// Whether a topic exists; empty while that is being seen to.
type Made = Arc<OnceCell<bool>>;

/// What a copy is made of.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) to: String,
    /// The topic it comes from, whose number of partitions a new topic gets.
    pub(super) from: Arc<str>,
    pub(super) key: Option<Bytes>,
    pub(super) body: Option<Bytes>,
    pub(super) headers: Option<OwnedHeaders>,
}

impl Copies {
    pub(super) fn new(link: Arc<CopyLink>, create: Option<NewTopics>) -> Self {
        Self { link, create, made: Mutex::default() }
    }

    /// Writes a copy; `Ok` once all in-sync replicas have it. Ends within the broker's publish timeout,
    /// and the time to make its topic.
    pub(super) async fn write(&self, copy: Copy) -> Result<(), SettleError> {
        self.make_topic(&copy.to, &copy.from).await;
        let failed = |to: &str, error: Box<dyn std::error::Error + Send + Sync>| {
            SettleError::new(format!("no confirmed copy in {to}")).with_source(error)
        };
        let link = self.link.link().map_err(|error| failed(&copy.to, error.into()))?;
        let to: Arc<str> = copy.to.into();
        let mut message = Message::new(Arc::clone(&to), copy.body.clone().unwrap_or_default());
        message.key = copy.key;
        let raw = Raw { headers: copy.headers, is_tombstone: copy.body.is_none() };
        let confirmed = async {
            let (pending, receipt) = link.intake.admit(link.check(message)?).await?;
            link.send_raw(pending, receipt, raw)?.await
        };
        match confirmed.await {
            Ok(_confirmation) => Ok(()),
            Err(error) => {
                // It may have been deleted.
                self.made().remove(&to);
                Err(failed(&to, error.into()))
            }
        }
    }

    /// Makes a topic unless it exists. When that is not possible, writing to it tells more.
    async fn make_topic(&self, topic: &str, like: &str) {
        let Some(create) = self.create else { return };
        let made = Arc::clone(self.made().entry(topic.into()).or_default());
        let make = async || {
            let topics = [(topic.to_owned(), like.to_owned())];
            let result = make_topics(&self.link.config, create, &topics).await;
            if let Err(error) = &result {
                tracing::warn!(topic, %error, "the topic could not be made, unless it exists");
            }
            result.is_ok()
        };
        if !*made.get_or_init(make).await {
            // The next copy tries again.
            let mut all = self.made();
            if all.get(topic).is_some_and(|now| Arc::ptr_eq(now, &made)) {
                all.remove(topic);
            }
        }
    }

    /// Makes retry topics, so that they can be subscribed to.
    pub(super) async fn make_all(&self, topics: &[(String, String)]) -> Result<(), KafkaError> {
        let Some(create) = self.create else { return Ok(()) };
        make_topics(&self.link.config, create, topics).await?;
        let made = topics.iter().map(|(topic, _)| (Arc::from(&**topic), Made::new(true.into())));
        self.made().extend(made);
        Ok(())
    }

    fn made(&self) -> MutexGuard<'_, HashMap<Arc<str>, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies").field("create", &self.create).finish_non_exhaustive()
    }
}

/// Makes topics, each like another one. One that exists is left as it is.
async fn make_topics(
    config: &KafkaConfig,
    create: NewTopics,
    topics: &[(String, String)],
) -> Result<(), KafkaError> {
    let options = config.to_admin_config()?;
    let events = Events::new(config, Arc::new(Health::new(TOPIC_TIMEOUT)));
    let words = events.clone();
    let sources: HashSet<String> = topics.iter().map(|(_, like)| like.clone()).collect();
    let looked_up = tokio::task::spawn_blocking(move || {
        let admin: AdminClient<Events> = options.create_with_context(events)?;
        let partitions: Vec<(String, i32)> = sources
            .into_iter()
            .map(|topic| {
                let known = create.partitions.or_else(|| partitions(&admin, &topic));
                (topic, known.unwrap_or(-1))
            })
            .collect();
        Ok((admin, partitions))
    });
    let wrong = |error| KafkaError::new(ErrorKind::Broker, words.reason(error));
    let (admin, partitions) = match looked_up.await {
        Ok(found) => found.map_err(wrong)?,
        Err(_cancelled) => {
            return Err(KafkaError::new(ErrorKind::Broker, "the look at the topic was cut off"));
        }
    };
    let replicas = create.replication.unwrap_or(-1);
    let new: Vec<_> = topics
        .iter()
        .map(|(topic, like)| {
            let known = partitions.iter().find(|(topic, _)| topic == like);
            let partitions = known.map_or(-1, |(_, count)| *count);
            NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas))
        })
        .collect();
    let limits = AdminOptions::new()
        .request_timeout(Some(TOPIC_TIMEOUT))
        .operation_timeout(Some(TOPIC_TIMEOUT));
    let made = admin.create_topics(&new, &limits).await.map_err(wrong)?;
    // Destroying a client joins its threads.
    tokio::task::spawn_blocking(move || drop(admin));
    for result in made {
        match result {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                return Err(KafkaError::of_code(code, format!("topic {topic}: {code}")));
            }
        }
    }
    Ok(())
}

/// How many partitions a topic has; blocks. Does not ask for one topic: that would make it.
fn partitions(admin: &AdminClient<Events>, topic: &str) -> Option<i32> {
    let metadata = admin.inner().fetch_metadata(None, TOPIC_TIMEOUT).ok()?;
    let found = metadata.topics().iter().find(|known| known.name() == topic)?;
    i32::try_from(found.partitions().len()).ok().filter(|count| *count > 0)
}

/// Headers of a copy: those it had, byte for byte, then `added` ones, which replace earlier ones of
/// their names.
pub(super) fn headers<'a>(
    original: impl Iterator<Item = RawHeader<'a>>,
    added: &[(&str, String)],
) -> Option<OwnedHeaders> {
    let mut headers = OwnedHeaders::new();
    let mut any = false;
    for RawHeader { name: key, value } in original {
        if added.iter().any(|(name, _)| *name == key) {
            continue;
        }
        headers = headers.insert(Header { key, value });
        any = true;
    }
    for (key, value) in added {
        headers = headers.insert(Header { key, value: Some(value.as_str()) });
        any = true;
    }
    any.then_some(headers)
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers as _;

    use super::*;
    use crate::consumer::record::Record;

    #[test]
    fn a_copy_keeps_what_the_record_had() {
        let record = Record::of(
            1,
            None,
            &[
                ("binary", Some(b"\x00\xff")),
                ("null", None),
                ("empty", Some(b"")),
                ("twice", Some(b"1")),
                ("twice", Some(b"2")),
                ("cqrs-retry-due", Some(b"5")),
                ("replaced", Some(b"old")),
            ],
        );
        let headers = headers(record.original_headers(), &[("replaced", "new".into())]).unwrap();
        let read: Vec<_> = headers.iter().map(|header| (header.key, header.value)).collect();
        assert_eq!(
            read,
            [
                ("binary", Some(&b"\x00\xff"[..])),
                ("null", None),
                ("empty", Some(b"")),
                ("twice", Some(b"1")),
                ("twice", Some(b"2")),
                ("replaced", Some(b"new")),
            ]
        );
    }

    #[test]
    fn copies_are_confirmed_whatever_the_broker_gives_up() {
        let mut config = KafkaConfig::new(["localhost:1"]).with_raw("acks", "0");
        (config.acks, config.enable_idempotence, config.retries) = (Acks::None, false, Some(0));
        let options = CopyLink::new(&config).config.to_client_config().unwrap();
        assert_eq!(options.get("acks"), Some("all"));
        assert_eq!(options.get("enable.idempotence"), Some("true"));
        assert_eq!(options.get("retries"), None);
    }
}
