//! The committer: the thread for blocking calls to the group coordinator (commits with a result, look-ups of committed
//! offsets). Used by the [`session`](super::session), so that the poll thread never blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::context::Context;
use super::offset_tracker::Draft;
use super::partition::Partition;
use super::poller::Poller;
use super::start_offsets::{self, NewPartition, PartitionStart, TopicsAtStart};

/// The pause between two attempts to list the topics.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Commits to be made together.
pub(super) type Drafts = Vec<(Arc<Partition>, Draft)>;

#[derive(Debug)]
enum Job {
    /// `last`: the ticket, if they are the last commits of their assignments.
    Commit {
        drafts: Drafts,
        last: Option<u64>,
    },
    LookUp {
        ticket: u64,
        wanted: Vec<NewPartition>,
    },
}

impl Job {
    /// The part of the job that is still valid when it starts. `cancelled`: the last cancelled ticket.
    ///
    /// A commit is sent with the member's generation at that time. So after a revoke the broker would accept an old
    /// offset in place of the one that the partition's next owner committed.
    fn still_valid(self, cancelled: u64) -> Option<Self> {
        match self {
            Self::Commit { last: Some(ticket), .. } | Self::LookUp { ticket, .. }
                if ticket <= cancelled =>
            {
                None
            }
            Self::Commit { mut drafts, last: None } => {
                drafts.retain(|(partition, _)| !partition.tracker().is_closed());
                Some(Self::Commit { drafts, last: None })
            }
            job => Some(job),
        }
    }
}

#[derive(Debug)]
pub(super) enum JobOutcome {
    /// `result` has the error of the `failed` ones.
    Committed {
        drafts: Drafts,
        failed: Drafts,
        last: Option<u64>,
        result: Result<(), RdError>,
    },
    Found {
        ticket: u64,
        result: Result<Vec<PartitionStart>, RdError>,
    },
}

/// The poll thread's handle. When it is dropped, the thread ends after its current job.
#[derive(Debug)]
pub(super) struct Committer {
    jobs: Sender<Job>,
    done: Receiver<JobOutcome>,
    tickets: u64,
    /// Jobs with this ticket or an earlier one are cancelled.
    cancelled: Arc<AtomicU64>,
}

impl Committer {
    /// `lists_topics`: first list the topics that exist now, for later look-ups.
    pub(super) fn start(
        consumer: Arc<BaseConsumer<Context>>,
        poller: Arc<Poller>,
        topics: Arc<TopicsAtStart>,
        lists_topics: bool,
    ) -> Result<Self, std::io::Error> {
        let (jobs, todo) = channel::<Job>();
        let (report, done) = channel();
        let cancelled = Arc::new(AtomicU64::new(0));
        let until = Arc::clone(&cancelled);
        thread::Builder::new().name("cqrs-kafka-commits".into()).spawn(move || {
            let mut first = None;
            while lists_topics && first.is_none() && topics.list(&consumer).is_err() {
                match todo.recv_timeout(RETRY_AFTER) {
                    Ok(job) => first = Some(job),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            for job in first.into_iter().chain(&todo) {
                let Some(job) = job.still_valid(until.load(Ordering::Acquire)) else { continue };
                let result = match job {
                    Job::Commit { drafts, last } => {
                        let (drafts, failed, result) = commit(&consumer, drafts);
                        JobOutcome::Committed { drafts, failed, last, result }
                    }
                    Job::LookUp { ticket, wanted } => {
                        let result = start_offsets::look_up(&consumer, &topics, &wanted);
                        JobOutcome::Found { ticket, result }
                    }
                };
                if report.send(result).is_err() {
                    break;
                }
                poller.wake();
            }
        })?;
        Ok(Self { jobs, done, tickets: 0, cancelled })
    }

    /// Commits, except for partitions that are closed when the job starts.
    pub(super) fn commit(&self, drafts: Drafts) {
        // The receiver lives at least as long as this sender.
        let _ = self.jobs.send(Job::Commit { drafts, last: None });
    }

    /// Makes the last commits of their assignments. The outcome has the returned ticket.
    pub(super) fn commit_last(&mut self, drafts: Drafts) -> u64 {
        self.tickets += 1;
        let _ = self.jobs.send(Job::Commit { drafts, last: Some(self.tickets) });
        self.tickets
    }

    /// Cancels last commits and look-ups that have not started.
    pub(super) fn cancel(&self) {
        self.cancelled.store(self.tickets, Ordering::Release);
    }

    /// Looks up the start offsets of partitions. The outcome has the returned ticket.
    pub(super) fn look_up(&mut self, wanted: Vec<NewPartition>) -> u64 {
        self.tickets += 1;
        let _ = self.jobs.send(Job::LookUp { ticket: self.tickets, wanted });
        self.tickets
    }

    /// The outcome of a finished job, if there is one.
    pub(super) fn take(&self) -> Option<JobOutcome> {
        self.done.try_recv().ok()
    }
}

/// The commits to make after `drafts` were refused.
pub(super) fn renew(drafts: &Drafts) -> Drafts {
    let renew = |(partition, _): &(Arc<Partition>, _)| {
        Some((Arc::clone(partition), partition.tracker().draft()?))
    };
    drafts.iter().filter_map(renew).collect()
}

/// Returns the committed drafts, the failed ones, and their error.
fn commit(
    consumer: &BaseConsumer<Context>,
    drafts: Drafts,
) -> (Drafts, Drafts, Result<(), RdError>) {
    if drafts.is_empty() {
        return (drafts, Drafts::new(), Ok(()));
    }
    match commit_together(consumer, &drafts) {
        Ok(()) => (drafts, Drafts::new(), Ok(())),
        // librdkafka returns the error of one partition for all, although the others are stored.
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

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Answer};

    use super::*;
    use crate::config::KafkaConfig;
    use crate::consumer::offset_tracker::{OffsetTracker, Takeover};
    use crate::consumer::quarantine::QuarantineOptions;
    use crate::events::Events;
    use crate::health::Health;

    /// A commit of each of three partitions.
    fn drafts() -> Drafts {
        let of = |id| {
            let mut tracker = OffsetTracker::new(Takeover::default(), QuarantineOptions::off());
            assert!(tracker.add(0) && tracker.finish(0));
            let draft = tracker.draft().unwrap();
            (Arc::new(Partition::new(Arc::default(), "t".into(), id, false, tracker)), draft)
        };
        (0..3).map(of).collect()
    }

    #[test]
    fn queued_job_is_dropped_after_its_assignment() {
        let drafts = drafts();
        let commit = |last| Job::Commit { drafts: drafts.clone(), last };
        let look_up = |ticket| Job::LookUp { ticket, wanted: Vec::new() };
        let ids = |job: Option<Job>| match job? {
            Job::Commit { drafts, .. } => Some(drafts.iter().map(|(of, _)| of.id).collect()),
            Job::LookUp { .. } => Some(Vec::new()),
        };
        assert_eq!(ids(commit(None).still_valid(7)), Some(vec![0, 1, 2]));
        drafts[1].0.close();
        assert_eq!(
            ids(commit(None).still_valid(0)),
            Some(vec![0, 2]),
            "the closed one has a later commit"
        );
        assert_eq!(ids(commit(Some(8)).still_valid(7)), Some(vec![0, 1, 2]));
        assert_eq!(ids(commit(Some(7)).still_valid(7)), None, "the partitions went to others");
        assert_eq!(
            (ids(look_up(8).still_valid(7)), ids(look_up(7).still_valid(7))),
            (Some(vec![]), None)
        );
    }

    #[test]
    fn last_commit_after_a_refusal_has_no_metadata() {
        let drafts = drafts();
        let last = |(of, _): &(Arc<Partition>, _)| Some((Arc::clone(of), of.close()?));
        let last: Drafts = drafts.iter().filter_map(last).collect();
        last[0].0.tracker().refused(&last[0].1, true);
        last[1].0.tracker().committed(&last[1].1);
        let without_metadata =
            |(of, draft): &(Arc<Partition>, Draft)| (of.id, draft.metadata.is_none());
        let renewed: Vec<_> = renew(&last).iter().map(without_metadata).collect();
        assert_eq!(renewed, [(0, true), (2, false)], "one is committed already");
    }

    #[test]
    fn refused_partition_does_not_fail_other_commits() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 3, 1).unwrap();
        let config = KafkaConfig::new([cluster.bootstrap_servers()]);
        let drafts = drafts();
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
