//! The thread that waits for the group coordinator, so that the poll thread never does: librdkafka's
//! commits with a result, and look-ups of committed offsets, block.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::context::Context;
use super::ledger::Draft;
use super::partition::Partition;
use super::places::{self, Start, Wanted, list_topics};
use super::shared::Shared;

/// Between two attempts at listing the topics.
const AGAIN: Duration = Duration::from_millis(250);

/// Commits to make together.
pub(super) type Drafts = Vec<(Arc<Partition>, Draft)>;

#[derive(Debug)]
enum Job {
    /// `last`: the ticket of the last commits of their epochs.
    Commit {
        drafts: Drafts,
        last: Option<u64>,
    },
    LookUp {
        ticket: u64,
        wanted: Vec<Wanted>,
    },
}

impl Job {
    /// What of it is still to be done when its turn comes. `cancelled`: tickets up to there are.
    ///
    /// A commit has the member's generation of the time at which it is sent: after a revoke the broker would
    /// take an old place over the one of the partition's next owner.
    fn wanted(self, cancelled: u64) -> Option<Self> {
        match self {
            Self::Commit { last: Some(ticket), .. } | Self::LookUp { ticket, .. }
                if ticket <= cancelled =>
            {
                None
            }
            Self::Commit { mut drafts, last: None } => {
                drafts.retain(|(partition, _)| !partition.is_closed());
                Some(Self::Commit { drafts, last: None })
            }
            job => Some(job),
        }
    }
}

#[derive(Debug)]
pub(super) enum Done {
    /// `failed`: those for which `result` says why.
    Committed {
        drafts: Drafts,
        failed: Drafts,
        last: Option<u64>,
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
    /// What has this ticket, or an earlier one, is not wanted any more.
    cancelled: Arc<AtomicU64>,
}

impl Clerk {
    /// `lists_topics`: the topics that there are now have to be known later.
    pub(super) fn start(
        consumer: Arc<BaseConsumer<Context>>,
        shared: Arc<Shared>,
        lists_topics: bool,
    ) -> Result<Self, std::io::Error> {
        let (jobs, todo) = channel::<Job>();
        let (report, done) = channel();
        let cancelled = Arc::new(AtomicU64::new(0));
        let until = Arc::clone(&cancelled);
        thread::Builder::new().name("cqrs-kafka-commits".into()).spawn(move || {
            let mut first = None;
            while lists_topics && first.is_none() && list_topics(&consumer, &shared).is_err() {
                match todo.recv_timeout(AGAIN) {
                    Ok(job) => first = Some(job),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            for job in first.into_iter().chain(&todo) {
                let Some(job) = job.wanted(until.load(Ordering::Acquire)) else { continue };
                let result = match job {
                    Job::Commit { drafts, last } => {
                        let (drafts, failed, result) = commit(&consumer, drafts);
                        Done::Committed { drafts, failed, last, result }
                    }
                    Job::LookUp { ticket, wanted } => {
                        let result = places::look_up(&consumer, &shared, &wanted);
                        Done::Found { ticket, result }
                    }
                };
                if report.send(result).is_err() {
                    break;
                }
                shared.wake_poller();
            }
        })?;
        Ok(Self { jobs, done, tickets: 0, cancelled })
    }

    /// Commits, except for partitions whose books are closed when its turn comes.
    pub(super) fn commit(&self, drafts: Drafts) {
        // The thread ends only after this sender.
        let _ = self.jobs.send(Job::Commit { drafts, last: None });
    }

    /// Makes the last commits of their epochs; the answer has the ticket.
    pub(super) fn commit_last(&mut self, drafts: Drafts) -> u64 {
        self.tickets += 1;
        let _ = self.jobs.send(Job::Commit { drafts, last: Some(self.tickets) });
        self.tickets
    }

    /// Last commits and look-ups that have not begun are not wanted any more.
    pub(super) fn cancel(&self) {
        self.cancelled.store(self.tickets, Ordering::Release);
    }

    /// Looks up where partitions begin; the answer has the ticket.
    pub(super) fn look_up(&mut self, wanted: Vec<Wanted>) -> u64 {
        self.tickets += 1;
        let _ = self.jobs.send(Job::LookUp { ticket: self.tickets, wanted });
        self.tickets
    }

    /// What was done since the last call.
    pub(super) fn take(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

/// What is to be committed now that `drafts` were refused.
pub(super) fn renew(drafts: &Drafts) -> Drafts {
    let renew =
        |(partition, _): &(Arc<Partition>, _)| Some((Arc::clone(partition), partition.draft()?));
    drafts.iter().filter_map(renew).collect()
}

/// Which were committed, which were not, and why.
fn commit(
    consumer: &BaseConsumer<Context>,
    drafts: Drafts,
) -> (Drafts, Drafts, Result<(), RdError>) {
    if drafts.is_empty() {
        return (drafts, Drafts::new(), Ok(()));
    }
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
        if let Some(metadata) = &draft.metadata {
            element.set_metadata(metadata.to_text());
        }
    }
    consumer.commit(&list, CommitMode::Sync)
}

/// Whether the cluster gives no right to it: trying again does not help.
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
    use crate::config::KafkaConfig;
    use crate::consumer::copies::{Copies, CopyProducers};
    use crate::consumer::ledger::{Ledger, Takeover};
    use crate::consumer::quarantine::Rule;
    use crate::events::Events;
    use crate::health::Health;

    /// A commit of each of three partitions.
    fn drafts(config: &KafkaConfig) -> Drafts {
        let copies = Copies::new(Arc::new(CopyProducers::new(config)), None);
        let shared = Arc::new(Shared::new(10, 1_000, Arc::new(copies)));
        let of = |id| {
            let mut ledger = Ledger::new(Takeover::default(), Rule::off());
            assert!(ledger.add(0) && ledger.finish(0));
            let draft = ledger.draft().unwrap();
            let shared = Arc::clone(&shared);
            (Arc::new(Partition::new(shared, "t".into(), id, false, ledger)), draft)
        };
        (0..3).map(of).collect()
    }

    #[test]
    fn queued_job_is_dropped_when_its_epoch_is_over() {
        let drafts = drafts(&KafkaConfig::new(["localhost:1"]));
        let commit = |last| Job::Commit { drafts: drafts.clone(), last };
        let look_up = |ticket| Job::LookUp { ticket, wanted: Vec::new() };
        let ids = |job: Option<Job>| match job? {
            Job::Commit { drafts, .. } => Some(drafts.iter().map(|(of, _)| of.id).collect()),
            Job::LookUp { .. } => Some(Vec::new()),
        };
        assert_eq!(ids(commit(None).wanted(7)), Some(vec![0, 1, 2]));
        drafts[1].0.close();
        assert_eq!(ids(commit(None).wanted(0)), Some(vec![0, 2]), "a later commit has its place");
        assert_eq!(ids(commit(Some(8)).wanted(7)), Some(vec![0, 1, 2]));
        assert_eq!(ids(commit(Some(7)).wanted(7)), None, "the partitions went to others");
        assert_eq!((ids(look_up(8).wanted(7)), ids(look_up(7).wanted(7))), (Some(vec![]), None));
    }

    #[test]
    fn last_commit_after_a_refusal_is_bare() {
        let drafts = drafts(&KafkaConfig::new(["localhost:1"]));
        let last = |(of, _): &(Arc<Partition>, _)| Some((Arc::clone(of), of.close()?));
        let last: Drafts = drafts.iter().filter_map(last).collect();
        last[0].0.refused(&last[0].1, true);
        last[1].0.committed(&last[1].1);
        let bare = |(of, draft): &(Arc<Partition>, Draft)| (of.id, draft.metadata.is_none());
        let renewed: Vec<_> = renew(&last).iter().map(bare).collect();
        assert_eq!(renewed, [(0, true), (2, false)], "one is committed already");
    }

    /// What one partition is refused for is said of all of them: each is committed alone then.
    #[test]
    fn a_partition_that_cannot_be_committed_keeps_no_other_one_from_it() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 3, 1).unwrap();
        let config = KafkaConfig::new([cluster.bootstrap_servers()]);
        let drafts = drafts(&config);
        let events = Events::new(&config, Arc::new(Health::new(Duration::from_secs(1))));
        let consumer: BaseConsumer<Context> = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "g")
            .create_with_context(Context::new(events))
            .unwrap();
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
