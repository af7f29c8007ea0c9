//! Confirmed copies of consumed records (retry copies and dead letters), and the creation of their topics. Used by the
//! settlements.

use std::collections::HashMap;
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

/// The largest record that is copied, in bytes. A broker closes the connection on a request above its
/// `socket.request.max.bytes` (100 MiB by default), which looks like a lost connection.
const LARGEST: usize = 64 << 20;

/// Options of the broker's producer that would weaken the confirm of a copy.
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

/// The producers of copies. Shared by all subscriptions of a broker value; each is started on its first use.
///
/// The broker's own producer may be configured without confirms or idempotence, and is shut down apart from the
/// subscriptions.
pub(crate) struct CopyProducers {
    config: KafkaConfig,
    plain: Mutex<Option<Arc<ProducerHandle>>>,
    /// For records that do not fit uncompressed. Not every client can read every compression.
    compressed: Mutex<Option<Arc<ProducerHandle>>>,
}

impl CopyProducers {
    pub(crate) fn new(config: &KafkaConfig) -> Self {
        let mut config = config.clone();
        config.acks = Acks::All;
        config.enable_idempotence = true;
        config.max_in_flight_requests_per_connection = 5;
        config.retries = None;
        // A consumed record may be copied, unless the broker refuses the size.
        config.max_message_size = 999_000_000;
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
    /// Topics that exist or are being created: one attempt for all copies that need it.
    created: Mutex<HashMap<Arc<str>, Created>>,
    /// Topics that cannot be created: no right, or the cluster refuses them.
    not_created: Refusals,
    /// Topics that this principal may not write to.
    not_written: Refusals,
    /// Log lines about topics that could not be created, and are tried again.
    not_created_yet: LogLimit,
    /// Log lines about copies that are too large.
    pub(super) too_large: LogLimit,
}

/// Set to whether a topic exists; empty while it is being created.
type Created = Arc<OnceCell<bool>>;

/// The outcome of writing a copy.
#[derive(Debug)]
pub(super) enum Written {
    /// All in-sync replicas stored it.
    Stored,
    /// The broker refuses its size, compressed or not.
    TooLarge(SettleError),
}

/// A copy to be written.
#[derive(Debug, Clone)]
pub(super) struct RecordCopy {
    pub(super) to: String,
    /// The topic of the record. A new topic gets its number of partitions.
    pub(super) from: Arc<str>,
    pub(super) key: Option<Bytes>,
    pub(super) body: Option<Bytes>,
    pub(super) headers: Option<OwnedHeaders>,
    /// Bytes of the record, with the headers that can be read.
    pub(super) size: usize,
}

impl Copies {
    pub(super) fn new(producers: Arc<CopyProducers>, create: Option<NewTopics>) -> Self {
        let (not_created, not_written) = (Refusals::default(), Refusals::default());
        let (not_created_yet, too_large) = (LogLimit::default(), LogLimit::default());
        Self {
            producers,
            create,
            created: Mutex::default(),
            not_created,
            not_written,
            not_created_yet,
            too_large,
        }
    }

    /// Writes a copy, compressed if it does not fit otherwise. Ends within twice the broker's publish timeout and the
    /// time to create its topic.
    ///
    /// An error that retrying cannot fix is [permanent](SettleError::permanent). The lack of a right is
    /// remembered for a while, in which further copies fail without an attempt.
    pub(super) async fn write(&self, copy: &RecordCopy) -> Result<Written, SettleError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            SettleError::new(format!("no confirmed copy in {}", copy.to)).with_source(error)
        };
        if let Some(error) = self.not_written.get(&copy.to) {
            return Err(failed(error.into()).permanent());
        }
        if copy.size > LARGEST {
            let text = format!("{} bytes, at most {LARGEST} are copied", copy.size);
            return Ok(Written::TooLarge(failed(text.into()).permanent()));
        }
        self.create_topic(&copy.to, &copy.from).await;
        for compress in [false, true] {
            let producer = self.producers.get(compress).map_err(|error| failed(error.into()))?;
            let Err(error) = publish(&producer, copy).await else { return Ok(Written::Stored) };
            match error.kind() {
                PublishErrorKind::TooLarge if compress => {
                    return Ok(Written::TooLarge(failed(error.into()).permanent()));
                }
                PublishErrorKind::TooLarge => {}
                _ => {
                    // The topic may have been deleted.
                    self.created().remove(&*copy.to);
                    let permanent = self.is_permanent(copy, &error);
                    let error = failed(error.into());
                    return Err(if permanent { error.permanent() } else { error });
                }
            }
        }
        unreachable!("the compressed copy ends the loop")
    }

    /// Returns whether a failed copy is permanent: retrying cannot fix it. Remembers errors that concern all copies
    /// to its topic.
    fn is_permanent(&self, copy: &RecordCopy, error: &PublishError) -> bool {
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
        let cause: Option<&KafkaError> = cause;
        let uncreated = self.not_created.get(&copy.to);
        let known = match (error.kind(), cause, uncreated) {
            (_, Some(cause), _) if cause.kind() == ErrorKind::Authorization => cause.to_string(),
            (PublishErrorKind::Unroutable, _, Some(reason)) => reason.to_string(),
            (PublishErrorKind::Invalid, ..) => return true,
            (PublishErrorKind::Refused, cause, _) => {
                return !cause.is_some_and(KafkaError::is_retryable);
            }
            _ => return false,
        };
        if self.not_written.add(&copy.to, &known) {
            tracing::error!(topic = copy.to, error = known, "copies to this topic are refused");
        }
        true
    }

    /// Creates a topic unless it exists. An error is left to the write that follows.
    async fn create_topic(&self, topic: &str, like: &str) {
        let Some(create) = self.create else { return };
        if self.not_created.get(topic).is_some() {
            return;
        }
        let created = Arc::clone(self.created().entry(topic.into()).or_default());
        let attempt = async || {
            let topics = [(topic.to_owned(), like.to_owned())];
            let result = create_topics(&self.producers.config, create, &topics).await;
            if let Err(error) = &result {
                let is_new = match error.is_retryable() {
                    true => self.not_created_yet.line().is_some(),
                    false => self.not_created.add(topic, &error.to_string()),
                };
                if is_new {
                    tracing::warn!(topic, %error, "the topic could not be created, unless it exists");
                }
            }
            result.is_ok()
        };
        if !*created.get_or_init(attempt).await {
            // The next copy tries again.
            let mut all = self.created();
            if all.get(topic).is_some_and(|now| Arc::ptr_eq(now, &created)) {
                all.remove(topic);
            }
        }
    }

    /// Creates retry topics, so that they can be subscribed to.
    pub(super) async fn create_all(&self, topics: &[(String, String)]) -> Result<(), KafkaError> {
        let Some(create) = self.create else { return Ok(()) };
        create_topics(&self.producers.config, create, topics).await?;
        let created =
            topics.iter().map(|(topic, _)| (Arc::from(&**topic), Created::new(true.into())));
        self.created().extend(created);
        Ok(())
    }

    fn created(&self) -> MutexGuard<'_, HashMap<Arc<str>, Created>> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn publish(producer: &ProducerHandle, copy: &RecordCopy) -> Result<(), PublishError> {
    let mut message = Message::new(&*copy.to, copy.body.clone().unwrap_or_default());
    message.key.clone_from(&copy.key);
    let raw =
        Raw { headers: copy.headers.clone(), size: copy.size, is_tombstone: copy.body.is_none() };
    let (pending, receipt) = producer.admit(message).await?;
    producer.send_raw(pending, receipt, raw)?.await.map(|_confirmation| ())
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers as _;

    use super::*;
    use crate::consumer::record::Record;

    #[test]
    fn copy_keeps_headers_and_replaces_added_ones() {
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
    fn copies_are_confirmed_whatever_the_options() {
        let mut config = KafkaConfig::new(["localhost:1"]).with_raw("acks", "0");
        (config.acks, config.enable_idempotence, config.retries) = (Acks::None, false, Some(0));
        let options = CopyProducers::new(&config).config.to_client_config().unwrap();
        assert_eq!(options.get("acks"), Some("all"));
        assert_eq!(options.get("enable.idempotence"), Some("true"));
        assert_eq!(options.get("retries"), None);
    }
}
