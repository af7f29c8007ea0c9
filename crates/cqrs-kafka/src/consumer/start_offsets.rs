//! The start offsets of newly assigned partitions. Looked up on the [`committer`](super::committer)'s thread.
//!
//! A partition starts at the group's committed offset. The start option is for a group that has none; the offset that
//! it resolves to is committed at takeover. It holds for the partitions that the topic had when the group began with
//! it. Their number is in the commit metadata of the topic's other partitions, else it is the number that the topic
//! had when this subscription began. A partition beyond it was added later and starts with the oldest record, and so
//! does a partition whose committed offset was deleted by retention.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use cqrs_core::StartAt;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use super::commit_metadata::CommitMetadata;
use super::context::Context;
use super::offset_tracker::Takeover;

/// The timeout of a look-up, which is retried after it.
const LOOK_UP: Duration = Duration::from_secs(10);
/// The timeout for asking the leaders for the first and last offsets. Shorter than the wait for a last commit, which
/// may be queued behind it.
const LIST_OFFSETS: Duration = Duration::from_secs(4);

type Consumer = BaseConsumer<Context>;
/// By topic and partition.
type Of<T> = HashMap<(Arc<str>, i32), T>;
type Offsets = Of<i64>;

/// A newly assigned partition.
#[derive(Debug, Clone)]
pub(super) struct NewPartition {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    /// For a group without a committed offset.
    pub(super) start: StartAt,
}

/// The start of an assignment of a partition.
#[derive(Debug)]
pub(super) struct PartitionStart {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) takeover: Takeover,
}

/// The topics that existed when the subscription began, each with its number of partitions.
#[derive(Debug, Default)]
pub(super) struct TopicsAtStart(OnceLock<HashMap<String, i32>>);

impl TopicsAtStart {
    /// Lists the topics, once.
    pub(super) fn list(&self, consumer: &Consumer) -> Result<(), RdError> {
        if self.0.get().is_none() {
            let metadata = consumer.fetch_metadata(None, LOOK_UP)?;
            let topic = |topic: &rdkafka::metadata::MetadataTopic| {
                (topic.name().to_owned(), count(topic.partitions().len()))
            };
            let _ = self.0.set(metadata.topics().iter().map(topic).collect());
        }
        Ok(())
    }
}

fn count(partitions: usize) -> i32 {
    i32::try_from(partitions).unwrap_or(i32::MAX)
}

/// The start offsets of `wanted`.
pub(super) fn look_up(
    consumer: &Consumer,
    topics_at_start: &TopicsAtStart,
    wanted: &[NewPartition],
) -> Result<Vec<PartitionStart>, RdError> {
    let all = || wanted.iter().map(|wanted| (&wanted.topic, wanted.partition));
    let committed = committed(consumer, all())?;
    let is_new = |wanted: &&NewPartition| !committed.contains_key(&key_of_new(wanted));
    let until = Instant::now() + LIST_OFFSETS;
    let ends = list_offsets(consumer, all(), Offset::End, until);
    let begins = list_offsets(consumer, all(), Offset::Beginning, until);
    let new: Vec<&NewPartition> = wanted.iter().filter(is_new).collect();
    let known = match new.iter().any(|wanted| wanted.start != StartAt::default()) {
        true => known_partitions(consumer, topics_at_start, &new)?,
        false => HashMap::new(),
    };
    let was_added = |wanted: &NewPartition| {
        known.get(&wanted.topic).is_some_and(|known| *known <= wanted.partition)
    };
    let times = start_times(consumer, new.into_iter().filter(|wanted| !was_added(wanted)))?;
    let mut starts = Vec::with_capacity(wanted.len());
    for one in wanted {
        let (topic, partition, key) = (&*one.topic, one.partition, key_of_new(one));
        let (begin, end) = (begins.get(&key).copied(), ends.get(&key).copied());
        let mut takeover = Takeover { end: end.unwrap_or(i64::MAX), ..Takeover::default() };
        match committed.get(&key) {
            Some((committed, metadata)) => {
                takeover.position = *committed;
                takeover.metadata = metadata.clone();
                if let Some(begin) = begin.filter(|begin| begin > committed) {
                    tracing::warn!(
                        topic,
                        partition,
                        committed,
                        begin,
                        "retention deleted records before the group got to them; \
                         it goes on with the oldest one that is left"
                    );
                    takeover.position = begin;
                }
            }
            None => {
                takeover.is_new = true;
                takeover.metadata.partitions = known.get(&one.topic).copied();
                let unknown = || RdError::OffsetFetch(Code::LeaderNotAvailable);
                // Without a leader, 0 stands for the oldest record: librdkafka continues with the first one that
                // exists.
                let begin = begin.unwrap_or(0);
                takeover.position = match one.start {
                    _ if was_added(one) => {
                        tracing::info!(
                            topic,
                            partition,
                            begin,
                            "the partition was added after the group began with its topic; \
                             it begins with the oldest record"
                        );
                        begin
                    }
                    StartAt::Latest => end.ok_or_else(unknown)?,
                    StartAt::Time(_) => match times.get(&key) {
                        Some(first) => *first,
                        None => end.ok_or_else(unknown)?,
                    },
                    _ => begin,
                };
            }
        }
        starts.push(PartitionStart { topic: Arc::clone(&one.topic), partition, takeover });
    }
    Ok(starts)
}

fn key_of_new(wanted: &NewPartition) -> (Arc<str>, i32) {
    (Arc::clone(&wanted.topic), wanted.partition)
}

fn key_of(element: &TopicPartitionListElem<'_>) -> (Arc<str>, i32) {
    (element.topic().into(), element.partition())
}

/// The group's committed offsets, of the partitions that have one.
fn committed<'a>(
    consumer: &Consumer,
    partitions: impl Iterator<Item = (&'a Arc<str>, i32)>,
) -> Result<Of<(i64, CommitMetadata)>, RdError> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition(topic, partition);
    }
    if list.count() == 0 {
        return Ok(HashMap::new());
    }
    let mut found = HashMap::new();
    for element in consumer.committed_offsets(list, LOOK_UP)?.elements() {
        element.error()?;
        let Offset::Offset(offset) = element.offset() else { continue };
        // rdkafka panics on metadata that is not UTF-8, which is another client's.
        let text = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned()));
        let metadata = text.map(|text| CommitMetadata::parse(&text)).unwrap_or_default();
        found.insert(key_of(&element), (offset, metadata));
    }
    Ok(found)
}

/// By topic: the number of partitions that it had when the group began with it.
fn known_partitions(
    consumer: &Consumer,
    topics_at_start: &TopicsAtStart,
    new: &[&NewPartition],
) -> Result<HashMap<Arc<str>, i32>, RdError> {
    topics_at_start.list(consumer)?;
    let topics: BTreeSet<&Arc<str>> = new.iter().map(|wanted| &wanted.topic).collect();
    let mut known = HashMap::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), LOOK_UP)?;
        let now = metadata.topics().first().map_or(0, |topic| count(topic.partitions().len()));
        let offsets = committed(consumer, (0..now).map(|partition| (topic, partition)))?;
        // A committed offset without a count is from an earlier version or another client: the group is not new.
        let counts = offsets.values().map(|(_, metadata)| metadata.partitions.unwrap_or(0)).max();
        let at_start = || topics_at_start.0.get()?.get(&**topic).copied();
        known.insert(Arc::clone(topic), counts.or_else(at_start).unwrap_or(0));
    }
    Ok(known)
}

/// For partitions that start at a time: the first offset whose record is not older.
fn start_times<'a>(
    consumer: &Consumer,
    new: impl Iterator<Item = &'a NewPartition>,
) -> Result<Offsets, RdError> {
    let mut list = TopicPartitionList::new();
    for wanted in new {
        let StartAt::Time(since) = wanted.start else { continue };
        let millis = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let millis = Offset::Offset(i64::try_from(millis).unwrap_or(i64::MAX));
        list.add_partition_offset(&wanted.topic, wanted.partition, millis)?;
    }
    if list.count() == 0 {
        return Ok(Offsets::new());
    }
    let list = consumer.offsets_for_times(list, LOOK_UP)?;
    for element in list.elements() {
        element.error()?;
    }
    Ok(offsets(&list))
}

/// The first or last offsets of partitions, as far as their leaders answer.
fn list_offsets<'a>(
    consumer: &Consumer,
    partitions: impl Iterator<Item = (&'a Arc<str>, i32)>,
    at: Offset,
    until: Instant,
) -> Offsets {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        let added = list.add_partition_offset(topic, partition, at);
        debug_assert!(added.is_ok(), "it is a valid offset");
    }
    if list.count() == 0 {
        return Offsets::new();
    }
    let limit = until.saturating_duration_since(Instant::now());
    match consumer.offsets_for_times(list, limit) {
        Ok(list) => offsets(&list),
        Err(error) => {
            tracing::debug!(%error, "the first and last offsets of partitions are not known");
            Offsets::new()
        }
    }
}

fn offsets(list: &TopicPartitionList) -> Offsets {
    let elements = list.elements();
    let known = elements.iter().filter(|element| element.error().is_ok());
    let offset = |element: &TopicPartitionListElem<'_>| match element.offset() {
        Offset::Offset(offset) => Some((key_of(element), offset)),
        _ => None,
    };
    known.filter_map(offset).collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::consumer::CommitMode;
    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::config::KafkaConfig;
    use crate::events::Events;
    use crate::health::Health;

    /// It starts with the oldest record, whatever the option is.
    #[test]
    fn added_partition_without_leader_delays_no_other() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 2, 1).unwrap();
        let config = KafkaConfig::new([cluster.bootstrap_servers()]);
        let events = Events::new(&config, Arc::new(Health::new(Duration::from_secs(1))));
        let consumer: Consumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "g")
            .create_with_context(Context::new(events))
            .unwrap();
        let mut committed = TopicPartitionList::new();
        let mut element = committed.add_partition("t", 0);
        element.set_offset(Offset::Offset(7)).unwrap();
        element.set_metadata("cqrs1;p=1");
        consumer.commit(&committed, CommitMode::Sync).unwrap();
        cluster.partition_leader("t", 1, None).unwrap();
        for start in [StartAt::Latest, StartAt::Time(UNIX_EPOCH)] {
            let wanted =
                [0, 1].map(|partition| NewPartition { topic: "t".into(), partition, start });
            let starts = look_up(&consumer, &TopicsAtStart::default(), &wanted).unwrap();
            let offsets: Vec<_> = starts.iter().map(|start| start.takeover.position).collect();
            assert_eq!(offsets, [7, 0]);
        }
    }
}
