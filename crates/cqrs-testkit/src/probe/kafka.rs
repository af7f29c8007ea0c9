//! The probe of Kafka.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use cqrs_core::broker::BoxFuture;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{ProbeError, ProbeSource, StoredMessage};

const CONTACT: Duration = Duration::from_secs(10);
/// The longest time until the thread ends after its probe was dropped.
const BEAT: Duration = Duration::from_millis(100);

/// A consumer on a thread of its own: rdkafka's calls block.
#[derive(Debug)]
pub(super) struct KafkaProbe {
    records: mpsc::Receiver<StoredMessage>,
    dropped: Arc<AtomicBool>,
}

impl KafkaProbe {
    pub(super) async fn open(bootstrap_servers: &str, topic: &str) -> Result<Self, ProbeError> {
        let failed = |error: KafkaError| ProbeError::new(format!("{topic:?} on kafka"), error);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("client.id", "cqrs-probe")
            .set("group.id", format!("probe-{}", Uuid::now_v7()))
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "100")
            .set("reconnect.backoff.max.ms", "1000")
            .create()
            .map_err(failed)?;
        let (to_probe, records) = mpsc::channel(1_000);
        let (contact, contacted) = oneshot::channel();
        let dropped = Arc::new(AtomicBool::new(false));
        let reader =
            Reader { consumer, topic: topic.to_owned(), to_probe, dropped: Arc::clone(&dropped) };
        std::thread::Builder::new()
            .name("kafka-probe".into())
            .spawn(move || reader.run(contact))
            .map_err(|error| ProbeError::new("kafka: no thread", error))?;
        match contacted.await {
            Ok(Ok(())) => Ok(Self { records, dropped }),
            Ok(Err(error)) => Err(failed(error)),
            Err(_thread_gone) => Err(ProbeError::new("kafka", "its thread ended")),
        }
    }
}

impl ProbeSource for KafkaProbe {
    fn next(&mut self, deadline: Duration) -> BoxFuture<'_, Option<StoredMessage>> {
        Box::pin(async move {
            match tokio::time::timeout(deadline, self.records.recv()).await {
                Ok(Some(record)) => Some(record),
                Ok(None) => panic!("the probe's thread ended"),
                Err(_elapsed) => None,
            }
        })
    }
}

impl Drop for KafkaProbe {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}

struct Reader {
    consumer: BaseConsumer,
    topic: String,
    to_probe: mpsc::Sender<StoredMessage>,
    dropped: Arc<AtomicBool>,
}

impl Reader {
    fn run(self, contact: oneshot::Sender<Result<(), KafkaError>>) {
        // Metadata of one topic only: a test cluster may have thousands.
        let first = self.consumer.fetch_metadata(Some(&self.topic), CONTACT);
        let _probe_dropped = contact.send(first.map(drop));
        while !self.is_dropped() && !self.assign() {
            std::thread::sleep(BEAT);
        }
        while !self.is_dropped() {
            // Errors are passing ones, such as a lost connection: librdkafka makes it again.
            if let Some(Ok(record)) = self.consumer.poll(BEAT)
                && self.to_probe.blocking_send(received(&record)).is_err()
            {
                return;
            }
        }
    }

    fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Relaxed) || self.to_probe.is_closed()
    }

    fn assign(&self) -> bool {
        let Ok(metadata) = self.consumer.fetch_metadata(Some(&self.topic), CONTACT) else {
            return false;
        };
        let mut list = TopicPartitionList::new();
        for topic in metadata.topics().iter().filter(|topic| topic.error().is_none()) {
            for partition in topic.partitions() {
                let added =
                    list.add_partition_offset(topic.name(), partition.id(), Offset::Beginning);
                added.expect("the beginning is a valid offset");
            }
        }
        list.count() > 0 && self.consumer.assign(&list).is_ok()
    }
}

fn received(record: &BorrowedMessage<'_>) -> StoredMessage {
    let body = Bytes::copy_from_slice(record.payload().unwrap_or_default());
    let mut received = StoredMessage::new(record.topic(), body);
    for header in record.headers().iter().flat_map(|headers| headers.iter()) {
        let value = header.value.unwrap_or_default();
        match std::str::from_utf8(value) {
            Ok(text) => received.add_header(header.key, text),
            Err(_) => received.add_bytes_header(header.key, value),
        }
    }
    received.key = record.key().map(Bytes::copy_from_slice);
    received.partition = Some(record.partition());
    received.offset = Some(record.offset());
    let since = record.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok());
    received.timestamp = since.map(|millis| UNIX_EPOCH + Duration::from_millis(millis));
    received
}
