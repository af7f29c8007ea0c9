//! The thread that waits for the group coordinator, so that the poll thread never does: librdkafka's
//! commits with a result, and look-ups of committed offsets, block.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use cqrs_core::StartAt;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::context::Context;
use super::ledger::Draft;
use super::note::Note;
use super::partition::Partition;
use super::shared::Shared;

/// How long a look-up may take before it is tried again.
const LOOK_UP: Duration = Duration::from_secs(10);

/// Commits to make together.
pub(super) type Drafts = Vec<(Arc<Partition>, Draft)>;

/// Where a partition begins.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    /// The committed offset.
    pub(super) committed: Option<i64>,
    /// Where to begin when there is none; `None`: as `auto.offset.reset` says.
    pub(super) begin: Option<Offset>,
    pub(super) note: Note,
    /// Where it ended, if that was asked.
    pub(super) end: Option<i64>,
}

#[derive(Debug)]
enum Job {
    Commit { drafts: Drafts, is_last: bool },
    LookUp { ticket: u64, partitions: Vec<(Arc<str>, i32)>, start: StartAt },
}

#[derive(Debug)]
pub(super) enum Done {
    /// `failed`: those for which `result` says why.
    Committed {
        drafts: Drafts,
        failed: Drafts,
        is_last: bool,
        result: Result<(), RdError>,
    },
    Found {
        ticket: u64,
        result: Result<Vec<Start>, RdError>,
    },
}

/// The poll thread's end. Dropped, the thread ends after the job it is at.
#[derive(Debug)]
pub(super) struct Clerk {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    tickets: u64,
}

impl Clerk {
    pub(super) fn start(
        consumer: Arc<BaseConsumer<Context>>,
        shared: Arc<Shared>,
    ) -> Result<Self, std::io::Error> {
        let (jobs, todo) = channel();
        let (report, done) = channel();
        thread::Builder::new().name("cqrs-kafka-commits".into()).spawn(move || {
            while let Ok(job) = todo.recv() {
                let result = match job {
                    Job::Commit { drafts, is_last } => {
                        let (drafts, failed, result) = commit(&consumer, drafts);
                        Done::Committed { drafts, failed, is_last, result }
                    }
                    Job::LookUp { ticket, partitions, start } => {
                        Done::Found { ticket, result: look_up(&consumer, &partitions, start) }
                    }
                };
                if report.send(result).is_err() {
                    break;
                }
                shared.wake_poller();
            }
        })?;
        Ok(Self { jobs, done, tickets: 0 })
    }

    /// Commits; `is_last`: these are the last commits of their epochs.
    pub(super) fn commit(&self, drafts: Drafts, is_last: bool) {
        // The thread ends only after this sender.
        let _ = self.jobs.send(Job::Commit { drafts, is_last });
    }

    /// Looks up where partitions begin; the answer has the ticket.
    pub(super) fn look_up(&mut self, partitions: Vec<(Arc<str>, i32)>, start: StartAt) -> u64 {
        self.tickets += 1;
        let _ = self.jobs.send(Job::LookUp { ticket: self.tickets, partitions, start });
        self.tickets
    }

    /// What was done since the last call.
    pub(super) fn take(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

/// Which were committed, which were not, and why.
fn commit(
    consumer: &BaseConsumer<Context>,
    drafts: Drafts,
) -> (Drafts, Drafts, Result<(), RdError>) {
    match commit_together(consumer, &drafts) {
        Ok(()) => (drafts, Drafts::new(), Ok(())),
        // What is wrong with one partition librdkafka says of all, although the others are stored.
        Err(error) if drafts.len() > 1 && is_of_one(error.rdkafka_error_code()) => {
            let (mut committed, mut failed, mut result) = (Drafts::new(), Drafts::new(), Ok(()));
            for draft in drafts {
                match commit_together(consumer, std::slice::from_ref(&draft)) {
                    Ok(()) => committed.push(draft),
                    Err(error) => {
                        failed.push(draft);
                        result = Err(error);
                    }
                }
            }
            (committed, failed, result)
        }
        Err(error) => (Drafts::new(), drafts, Err(error)),
    }
}

fn is_of_one(code: Option<Code>) -> bool {
    matches!(
        code,
        Some(
            Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::TopicAuthorizationFailed
                | Code::OffsetMetadataTooLarge
        )
    )
}

fn commit_together(
    consumer: &BaseConsumer<Context>,
    drafts: &[(Arc<Partition>, Draft)],
) -> Result<(), RdError> {
    let mut list = TopicPartitionList::with_capacity(drafts.len());
    for (partition, draft) in drafts {
        let mut element = list.add_partition(&partition.topic, partition.id);
        element.set_offset(Offset::Offset(draft.position))?;
        element.set_metadata(draft.note.to_text());
    }
    consumer.commit(&list, CommitMode::Sync)
}

fn look_up(
    consumer: &BaseConsumer<Context>,
    partitions: &[(Arc<str>, i32)],
    start: StartAt,
) -> Result<Vec<Start>, RdError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    if list.count() == 0 {
        // A member without a partition.
        return Ok(Vec::new());
    }
    let list = consumer.committed_offsets(list, LOOK_UP)?;
    let mut starts = Vec::with_capacity(partitions.len());
    for element in list.elements() {
        element.error()?;
        let committed = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        // rdkafka panics on metadata that is not UTF-8: then it is not ours.
        let text = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            element.metadata().to_owned()
        }));
        starts.push(Start {
            topic: element.topic().into(),
            partition: element.partition(),
            committed,
            begin: None,
            note: text.map(|text| Note::parse(&text)).unwrap_or_default(),
            end: None,
        });
    }
    if let Err(error) = find_ends(consumer, &mut starts) {
        tracing::debug!(%error, "where partitions end is not known: more records than needed are suspect");
    }
    match start {
        StartAt::Time(since) => {
            let millis = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
            let millis = i64::try_from(millis).unwrap_or(i64::MAX);
            begin_at(consumer, &mut starts, Offset::Offset(millis))?;
        }
        // Left to `auto.offset.reset`, the end would be looked up some time after the partition counts
        // as consumed from, and what is published until then missed.
        StartAt::Latest => begin_at(consumer, &mut starts, Offset::End)?,
        _ => {}
    }
    Ok(starts)
}

/// For partitions whose last consumer may have died: it can only have started what is there by now.
fn find_ends(consumer: &BaseConsumer<Context>, starts: &mut [Start]) -> Result<(), RdError> {
    let mut list = TopicPartitionList::new();
    for start in starts.iter().filter(|start| start.note.noted.open.is_some()) {
        list.add_partition_offset(&start.topic, start.partition, Offset::End)?;
    }
    if list.count() == 0 {
        return Ok(());
    }
    let ends = consumer.offsets_for_times(list, LOOK_UP)?;
    for start in starts {
        let end = ends.find_partition(&start.topic, start.partition).map(|end| end.offset());
        if let Some(Offset::Offset(end)) = end {
            start.end = Some(end);
        }
    }
    Ok(())
}

/// For partitions without a committed offset: the first record that is not older than `at` (milliseconds
/// since 1970), or the end.
fn begin_at(
    consumer: &BaseConsumer<Context>,
    starts: &mut [Start],
    at: Offset,
) -> Result<(), RdError> {
    let mut list = TopicPartitionList::new();
    for start in starts.iter().filter(|start| start.committed.is_none()) {
        list.add_partition_offset(&start.topic, start.partition, at)?;
    }
    if list.count() == 0 {
        return Ok(());
    }
    let list = consumer.offsets_for_times(list, LOOK_UP)?;
    let mut found = HashMap::new();
    for element in list.elements() {
        element.error()?;
        found.insert((element.topic().to_owned(), element.partition()), element.offset());
    }
    for start in starts.iter_mut().filter(|start| start.committed.is_none()) {
        start.begin = found.get(&(start.topic.to_string(), start.partition)).copied();
    }
    Ok(())
}

/// Whether trying again may help, and nothing is wrong with the options.
pub(super) fn is_forbidden(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Answer};

    use super::*;
    use crate::KafkaConfig;
    use crate::consumer::copies::{Copies, CopyLink};
    use crate::consumer::ledger::Ledger;
    use crate::events::Events;
    use crate::health::Health;

    /// What one partition is refused for is said of all of them: each is committed alone then.
    #[test]
    fn a_partition_that_cannot_be_committed_keeps_no_other_one_from_it() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 3, 1).unwrap();
        let config = KafkaConfig::new([cluster.bootstrap_servers()]);
        let events = Events::new(&config, Arc::new(Health::new(Duration::from_secs(1))));
        let consumer: BaseConsumer<Context> = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "g")
            .create_with_context(Context::new(events))
            .unwrap();
        let copies = Copies::new(Arc::new(CopyLink::new(&config)), None);
        let shared = Arc::new(Shared::new(10, 1_000, Arc::new(copies)));
        let drafts: Drafts = (0..3)
            .map(|id| {
                let mut ledger = Ledger::new(Some(0), Note::default());
                assert!(ledger.add(0) && ledger.finish(0));
                let draft = ledger.draft().unwrap();
                let shared = Arc::clone(&shared);
                (Arc::new(Partition::new(shared, "t".into(), id, false, ledger)), draft)
            })
            .collect();
        let ids = |drafts: &Drafts| drafts.iter().map(|(partition, _)| partition.id).collect();
        let fine = Answer::RD_KAFKA_RESP_ERR_NO_ERROR;
        let forbidden = Answer::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        let mut outcomes: Vec<(Vec<i32>, Vec<i32>, Option<Code>)> = Vec::new();
        for answers in [&[forbidden, fine, forbidden, fine][..], &[fine], &[forbidden; 4]] {
            cluster.request_errors(RDKafkaApiKey::OffsetCommit, answers);
            let (committed, failed, result) = commit(&consumer, drafts.clone());
            let code = result.err().and_then(|error| error.rdkafka_error_code());
            outcomes.push((ids(&committed), ids(&failed), code));
        }
        let forbidden = Some(Code::TopicAuthorizationFailed);
        assert_eq!(
            outcomes,
            [
                (vec![0, 2], vec![1], forbidden),
                (vec![0, 1, 2], vec![], None),
                (vec![], vec![0, 1, 2], forbidden),
            ]
        );
    }
}
