//! Where the partitions of a new assignment begin. Runs on the [`clerk`](super::clerk)'s thread.
//!
//! A partition begins at the group's committed place. The start option is for a group that has none: the place
//! it resolves to is committed at takeover. Which partitions a group without a place of its own may start by
//! the option is one rule: those that the topic had when the group began with it. That count stands in the
//! commit metadata of the topic's other partitions, else it is that of the topics there were when this
//! subscription began. A partition beyond was added later: it begins with the oldest record there is, as does
//! a partition whose place was overtaken by retention.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use cqrs_core::StartAt;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use super::commit_metadata::CommitMetadata;
use super::context::Context;
use super::ledger::Takeover;
use super::shared::Shared;

/// How long a look-up may take before it is tried again.
const LOOK_UP: Duration = Duration::from_secs(10);
/// How long leaders are asked where partitions end and begin: less than a last commit is waited for, which may
/// have to wait for this.
const LIST_OFFSETS: Duration = Duration::from_secs(4);

type Consumer = BaseConsumer<Context>;
/// By topic and partition.
type Of<T> = HashMap<(Arc<str>, i32), T>;
type Offsets = Of<i64>;

/// A partition to be taken over, and where it begins if the group is new to its topic.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) start: StartAt,
}

/// Where a partition begins.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) takeover: Takeover,
}

/// Remembers which topics there are, once.
pub(super) fn list_topics(consumer: &Consumer, shared: &Shared) -> Result<(), RdError> {
    if shared.topics_at_start.get().is_none() {
        let metadata = consumer.fetch_metadata(None, LOOK_UP)?;
        let topic = |topic: &rdkafka::metadata::MetadataTopic| {
            (topic.name().to_owned(), count(topic.partitions().len()))
        };
        let _ = shared.topics_at_start.set(metadata.topics().iter().map(topic).collect());
    }
    Ok(())
}

fn count(partitions: usize) -> i32 {
    i32::try_from(partitions).unwrap_or(i32::MAX)
}

/// Where `wanted` begin.
pub(super) fn look_up(
    consumer: &Consumer,
    shared: &Shared,
    wanted: &[Wanted],
) -> Result<Vec<Start>, RdError> {
    let all = || wanted.iter().map(|wanted| (&wanted.topic, wanted.partition));
    let committed = committed(consumer, all())?;
    let is_new = |wanted: &&Wanted| !committed.contains_key(&key(wanted));
    let until = Instant::now() + LIST_OFFSETS;
    let ends = list_offsets(consumer, all(), Offset::End, until);
    let begins = list_offsets(consumer, all(), Offset::Beginning, until);
    let new: Vec<&Wanted> = wanted.iter().filter(is_new).collect();
    let known = match new.iter().any(|wanted| wanted.start != StartAt::default()) {
        true => known_partitions(consumer, shared, &new)?,
        false => HashMap::new(),
    };
    let was_added =
        |wanted: &Wanted| known.get(&wanted.topic).is_some_and(|known| *known <= wanted.partition);
    let times = start_times(consumer, new.into_iter().filter(|wanted| !was_added(wanted)))?;
    let mut starts = Vec::with_capacity(wanted.len());
    for one in wanted {
        let (topic, partition, place) = (&*one.topic, one.partition, key(one));
        let (begin, end) = (begins.get(&place).copied(), ends.get(&place).copied());
        let mut takeover = Takeover { end: end.unwrap_or(i64::MAX), ..Takeover::default() };
        match committed.get(&place) {
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
                // Where there is no leader, 0 is the oldest, too: librdkafka goes on with what is left.
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
                    StartAt::Time(_) => match times.get(&place) {
                        Some(first) => *first,
                        None => end.ok_or_else(unknown)?,
                    },
                    _ => begin,
                };
            }
        }
        starts.push(Start { topic: Arc::clone(&one.topic), partition, takeover });
    }
    Ok(starts)
}

fn key(wanted: &Wanted) -> (Arc<str>, i32) {
    (Arc::clone(&wanted.topic), wanted.partition)
}

fn key_of(element: &TopicPartitionListElem<'_>) -> (Arc<str>, i32) {
    (element.topic().into(), element.partition())
}

/// The group's places, where it has one.
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
        // rdkafka panics on metadata that is not UTF-8: then it is not ours.
        let text = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned()));
        let metadata = text.map(|text| CommitMetadata::parse(&text)).unwrap_or_default();
        found.insert(key_of(&element), (offset, metadata));
    }
    Ok(found)
}

/// By topic: how many partitions it had when the group began with it.
fn known_partitions(
    consumer: &Consumer,
    shared: &Shared,
    new: &[&Wanted],
) -> Result<HashMap<Arc<str>, i32>, RdError> {
    list_topics(consumer, shared)?;
    let topics: BTreeSet<&Arc<str>> = new.iter().map(|wanted| &wanted.topic).collect();
    let mut known = HashMap::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), LOOK_UP)?;
        let now = metadata.topics().first().map_or(0, |topic| count(topic.partitions().len()));
        let places = committed(consumer, (0..now).map(|partition| (topic, partition)))?;
        // A place without a count is older than the count, or foreign: the group is not new.
        let counts = places.values().map(|(_, metadata)| metadata.partitions.unwrap_or(0)).max();
        let at_start = || shared.topics_at_start.get()?.get(&**topic).copied();
        known.insert(Arc::clone(topic), counts.or_else(at_start).unwrap_or(0));
    }
    Ok(known)
}

/// For those that begin at a time: the first record that is not older.
fn start_times<'a>(
    consumer: &Consumer,
    new: impl Iterator<Item = &'a Wanted>,
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

/// Where partitions begin or end, as far as their leaders say.
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
            tracing::debug!(%error, "where partitions begin and end is not known");
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
    use crate::consumer::copies::{Copies, CopyProducers};
    use crate::events::Events;
    use crate::health::Health;

    /// It begins with the oldest record, whatever the option says.
    #[test]
    fn added_partition_without_leader_keeps_no_other_back() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 2, 1).unwrap();
        let config = KafkaConfig::new([cluster.bootstrap_servers()]);
        let events = Events::new(&config, Arc::new(Health::new(Duration::from_secs(1))));
        let consumer: Consumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "g")
            .create_with_context(Context::new(events))
            .unwrap();
        let copies = Copies::new(Arc::new(CopyProducers::new(&config)), None);
        let shared = Shared::new(10, 1_000, Arc::new(copies));
        let mut place = TopicPartitionList::new();
        let mut element = place.add_partition("t", 0);
        element.set_offset(Offset::Offset(7)).unwrap();
        element.set_metadata("cqrs1;p=1");
        consumer.commit(&place, CommitMode::Sync).unwrap();
        cluster.partition_leader("t", 1, None).unwrap();
        for start in [StartAt::Latest, StartAt::Time(UNIX_EPOCH)] {
            let wanted = [0, 1].map(|partition| Wanted { topic: "t".into(), partition, start });
            let starts = look_up(&consumer, &shared, &wanted).unwrap();
            let places: Vec<_> = starts.iter().map(|start| start.takeover.position).collect();
            assert_eq!(places, [7, 0]);
        }
    }
}
