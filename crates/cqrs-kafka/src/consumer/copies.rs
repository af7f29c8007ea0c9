//! Confirmed copies of consumed records: retry copies and dead letters, and the topics they go to.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cqrs_core::broker::PublishErrorKind;
use cqrs_core::consume::{LogLimit, SettleError};
use cqrs_core::{Message, PublishError};
use rdkafka::message::OwnedHeaders;
use tokio::sync::OnceCell;

use super::create_topics::create_topics;
use super::refusals::Refusals;
use crate::config::{Acks, Compression, KafkaConfig, NewTopics};
use crate::error::{ErrorKind, KafkaError};
use crate::producer::{self, ProducerHandle, Raw};

/// Bytes of a record that is copied, at most. A broker closes the connection of a request that is larger than
/// its `socket.request.max.bytes` (100 MiB by default), which looks like a lost connection.
const LARGEST: usize = 64 << 20;

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

/// Options of the broker's producer that would undo the compression of a copy.
const COMPRESSION: [&str; 3] = ["compression.codec", "compression.type", "compression.level"];

/// The producers of copies. Shared by all subscriptions of a broker value; each is made when it is needed
/// first.
///
/// It is not the broker's own: that one may be set to give up confirms or idempotence, and is shut down
/// apart from the subscriptions.
pub(crate) struct CopyProducers {
    config: KafkaConfig,
    plain: Mutex<Option<Arc<ProducerHandle>>>,
    /// For what does not fit otherwise. Not every client can read every compression.
    compressed: Mutex<Option<Arc<ProducerHandle>>>,
}

impl CopyProducers {
    pub(crate) fn new(config: &KafkaConfig) -> Self {
        let mut config = config.clone();
        config.acks = Acks::All;
        config.enable_idempotence = true;
        config.max_in_flight_requests_per_connection = 5;
        config.retries = None;
        // What could be consumed can be copied; the broker has the last word.
        config.message_max_bytes = 999_000_000;
        config.raw.retain(|name, _| !WEAKER.contains(&name.as_str()));
        Self { config, plain: Mutex::default(), compressed: Mutex::default() }
    }

    fn get(&self, compress: bool) -> Result<Arc<ProducerHandle>, KafkaError> {
        let producer = if compress { &self.compressed } else { &self.plain };
        let mut producer = producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(producer) = &*producer {
            return Ok(Arc::clone(producer));
        }
        let mut config = self.config.clone();
        if compress {
            config.compression = Compression::Zstd;
            config.raw.retain(|name, _| !COMPRESSION.contains(&name.as_str()));
        }
        let started = producer::start(&config)?;
        Ok(Arc::clone(producer.insert(started)))
    }
}

impl Drop for CopyProducers {
    fn drop(&mut self) {
        for producer in [&mut self.plain, &mut self.compressed] {
            if let Some(producer) = producer.get_mut().unwrap_or_else(PoisonError::into_inner) {
                producer.close(self.config.publish_timeout);
            }
        }
    }
}

/// Writes the copies of one subscription.
pub(super) struct Copies {
    producers: Arc<CopyProducers>,
    create: Option<NewTopics>,
    /// Topics that are known to exist, or are being made: one try for all who need it.
    made: Mutex<HashMap<Arc<str>, Made>>,
    /// Topics that cannot be created: no right, or the cluster takes them not.
    not_created: Refusals,
    /// Topics that this principal may not write to.
    not_written: Refusals,
    /// Log lines about topics that could not be created for now.
    not_now: LogLimit,
    /// Log lines about copies that are too large.
    pub(super) too_large: LogLimit,
}

/// Whether a topic exists; empty while that is being seen to.
type Made = Arc<OnceCell<bool>>;

/// How writing a copy ended.
#[derive(Debug)]
pub(super) enum Written {
    /// All in-sync replicas have it.
    Stored,
    /// The broker takes none this large, compressed or not.
    TooLarge(SettleError),
}

/// What a copy is made of.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) to: String,
    /// The topic it comes from, whose number of partitions a new topic gets.
    pub(super) from: Arc<str>,
    pub(super) key: Option<Bytes>,
    pub(super) body: Option<Bytes>,
    pub(super) headers: Option<OwnedHeaders>,
    /// Bytes of the record that it is made of, with the headers that can be read.
    pub(super) size: usize,
}

impl Copies {
    pub(super) fn new(producers: Arc<CopyProducers>, create: Option<NewTopics>) -> Self {
        let (not_created, not_written) = (Refusals::default(), Refusals::default());
        let (not_now, too_large) = (LogLimit::default(), LogLimit::default());
        Self {
            producers,
            create,
            made: Mutex::default(),
            not_created,
            not_written,
            not_now,
            too_large,
        }
    }

    /// Writes a copy, compressed if it does not fit otherwise. Ends within twice the broker's publish timeout,
    /// and the time to make its topic.
    ///
    /// An error that retrying cannot fix is [permanent](SettleError::permanent). The lack of a right is
    /// remembered for a while: until then the next copies fail without an attempt.
    pub(super) async fn write(&self, copy: &Copy) -> Result<Written, SettleError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            SettleError::new(format!("no confirmed copy in {}", copy.to)).with_source(error)
        };
        if let Some(error) = self.not_written.recall(&copy.to) {
            return Err(failed(error.into()).permanent());
        }
        if copy.size > LARGEST {
            let text = format!("{} bytes, at most {LARGEST} are copied", copy.size);
            return Ok(Written::TooLarge(failed(text.into()).permanent()));
        }
        self.make_topic(&copy.to, &copy.from).await;
        for compress in [false, true] {
            let producer = self.producers.get(compress).map_err(|error| failed(error.into()))?;
            let Err(error) = publish(&producer, copy).await else { return Ok(Written::Stored) };
            match error.kind() {
                PublishErrorKind::TooLarge if compress => {
                    return Ok(Written::TooLarge(failed(error.into()).permanent()));
                }
                PublishErrorKind::TooLarge => {}
                _ => {
                    // It may have been deleted.
                    self.made().remove(&*copy.to);
                    let permanent = self.remember(copy, &error);
                    let error = failed(error.into());
                    return Err(if permanent { error.permanent() } else { error });
                }
            }
        }
        unreachable!("the compressed copy ends the loop")
    }

    /// Whether retrying cannot fix a failed copy. Remembers what concerns all copies to its topic.
    fn remember(&self, copy: &Copy, error: &PublishError) -> bool {
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
        let cause: Option<&KafkaError> = cause;
        let uncreated = self.not_created.recall(&copy.to);
        let known = match (error.kind(), cause, uncreated) {
            (_, Some(cause), _) if cause.kind() == ErrorKind::Authorization => cause.to_string(),
            (PublishErrorKind::Unroutable, _, Some(why)) => why.to_string(),
            (PublishErrorKind::Invalid, ..) => return true,
            (PublishErrorKind::Refused, cause, _) => {
                return !cause.is_some_and(KafkaError::is_retryable);
            }
            _ => return false,
        };
        if self.not_written.note(&copy.to, &known) {
            tracing::error!(topic = copy.to, error = known, "copies to this topic are refused");
        }
        true
    }

    /// Makes a topic unless it exists. When that is not possible, writing to it tells more.
    async fn make_topic(&self, topic: &str, like: &str) {
        let Some(create) = self.create else { return };
        if self.not_created.recall(topic).is_some() {
            return;
        }
        let made = Arc::clone(self.made().entry(topic.into()).or_default());
        let make = async || {
            let topics = [(topic.to_owned(), like.to_owned())];
            let result = create_topics(&self.producers.config, create, &topics).await;
            if let Err(error) = &result {
                let is_new = match error.is_retryable() {
                    true => self.not_now.line().is_some(),
                    false => self.not_created.note(topic, &error.to_string()),
                };
                if is_new {
                    tracing::warn!(topic, %error, "the topic could not be made, unless it exists");
                }
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
        create_topics(&self.producers.config, create, topics).await?;
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

async fn publish(producer: &ProducerHandle, copy: &Copy) -> Result<(), PublishError> {
    let mut message = Message::new(&*copy.to, copy.body.clone().unwrap_or_default());
    message.key.clone_from(&copy.key);
    let raw =
        Raw { headers: copy.headers.clone(), size: copy.size, is_tombstone: copy.body.is_none() };
    let (pending, receipt) = producer.intake.admit(producer.check(message)?).await?;
    producer.send_raw(pending, receipt, raw)?.await.map(|_confirmation| ())
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
        let headers = record.headers_of_copy(&[("replaced", "new".into())]).unwrap();
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
        let options = CopyProducers::new(&config).config.to_client_config().unwrap();
        assert_eq!(options.get("acks"), Some("all"));
        assert_eq!(options.get("enable.idempotence"), Some("true"));
        assert_eq!(options.get("retries"), None);
    }
}
