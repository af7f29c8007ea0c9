//! The answers of a [`session`](super::session) to rebalances: it takes partitions over, or drains, commits and
//! revokes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::StartAt;
use rdkafka::consumer::{Consumer as _, RebalanceProtocol};
use rdkafka::error::KafkaError as RdError;
use rdkafka::{Offset, TopicPartitionList};

use super::committer::{Drafts, renew};
use super::context::Rebalance;
use super::offset_tracker::OffsetTracker;
use super::partition::Partition;
use super::partition_queue::PartitionQueue;
use super::process::Process;
use super::quarantine::QuarantineOptions;
use super::rebalance_state::RebalanceState;
use super::session::Session;
use super::start_offsets::{NewPartition, PartitionStart};
use crate::error::{ErrorKind, KafkaError};

/// The longest wait for the last commits of a revoke.
const LAST_COMMIT: Duration = Duration::from_secs(5);
/// The pause between two attempts at a look-up or a last commit.
const RETRY_AFTER: Duration = Duration::from_millis(250);

impl Session {
    /// Continues with the current rebalance, or starts with the next one.
    pub(super) fn advance_rebalance(&mut self, now: Instant) -> Result<(), KafkaError> {
        self.rebalance_state = match std::mem::take(&mut self.rebalance_state) {
            RebalanceState::Idle => match self.consumer.context().next_rebalance() {
                None => RebalanceState::Idle,
                Some(Rebalance::Assign(list)) => self.start_assign(list),
                Some(Rebalance::Revoke { list, lost }) => self.start_revoke(list, lost, now)?,
            },
            RebalanceState::Assigning { list, ticket, retry_at } => {
                if self.consumer.context().has_rebalance() {
                    // The next rebalance revokes these partitions already.
                    self.committer.cancel();
                    self.answer_assign(&TopicPartitionList::new())?;
                    RebalanceState::Idle
                } else if retry_at.is_some_and(|at| now >= at) {
                    self.start_assign(list)
                } else {
                    RebalanceState::Assigning { list, ticket, retry_at }
                }
            }
            RebalanceState::Draining { list, partitions, until } => {
                let running: usize = partitions.iter().map(|partition| partition.running()).sum();
                if self.consumer.assignment_lost() {
                    self.close_uncommitted(&list, &partitions, true)?
                } else if running == 0 || now >= until {
                    if running > 0 {
                        tracing::warn!(
                            subscription = &*self.state.plan.request.name,
                            running,
                            "handlers still run while their partitions are revoked; \
                             their messages are redelivered to other members"
                        );
                    }
                    self.start_last_commit(list, &partitions, now)?
                } else {
                    RebalanceState::Draining { list, partitions, until }
                }
            }
            RebalanceState::Committing { list, drafts, ticket, retry_at, until } => {
                if now >= until || self.consumer.assignment_lost() {
                    self.committer.cancel();
                    tracing::warn!(
                        subscription = &*self.state.plan.request.name,
                        "partitions are revoked without a last commit; \
                         messages settled since the previous commit are redelivered"
                    );
                    self.answer_revoke(&list)?;
                    RebalanceState::Idle
                } else if retry_at.is_some_and(|at| now >= at) {
                    self.commit_last(list, renew(&drafts), until)?
                } else {
                    RebalanceState::Committing { list, drafts, ticket, retry_at, until }
                }
            }
        };
        Ok(())
    }

    fn start_assign(&mut self, list: TopicPartitionList) -> RebalanceState {
        let elements = list.elements();
        let consumed =
            elements.iter().filter(|element| self.state.plan.is_consumed(element.topic()));
        let wanted = consumed.map(|element| NewPartition {
            topic: element.topic().into(),
            partition: element.partition(),
            // A retry topic starts with its oldest record, so that no copy is missed.
            start: match self.state.plan.is_retry(element.topic()) {
                true => StartAt::default(),
                false => self.state.plan.request.start,
            },
        });
        let ticket = self.committer.look_up(wanted.collect());
        RebalanceState::Assigning { list, ticket, retry_at: None }
    }

    /// Handles the result of a look-up of committed offsets.
    pub(super) fn found(&mut self, of: u64, result: Result<Vec<PartitionStart>, RdError>) {
        match std::mem::take(&mut self.rebalance_state) {
            RebalanceState::Assigning { list, ticket, .. } if ticket == of => match result {
                Ok(starts) => self.assign(starts),
                Err(error) => {
                    let error = self.consumer.context().events.reason(error);
                    tracing::warn!(
                        subscription = &*self.state.plan.request.name,
                        error,
                        "committed offsets could not be looked up; it is tried again"
                    );
                    self.membership.wait(error);
                    let retry_at = Some(Instant::now() + RETRY_AFTER);
                    self.rebalance_state = RebalanceState::Assigning { list, ticket, retry_at };
                }
            },
            other => self.rebalance_state = other,
        }
    }

    fn assign(&mut self, starts: Vec<PartitionStart>) {
        let mut list = TopicPartitionList::with_capacity(starts.len());
        let mut queues = Vec::with_capacity(starts.len());
        let options = QuarantineOptions {
            max_crashes: self.state.plan.request.max_crashes,
            concurrency: self.state.plan.request.concurrency,
            retry: self.state.plan.request.retry.clone(),
            process: Process::this(),
        };
        for PartitionStart { topic, partition, takeover } in starts {
            let start = Offset::Offset(takeover.position);
            let tracker = OffsetTracker::new(takeover, options.clone());
            let unclean_ends = tracker.unclean_ends();
            if unclean_ends > 1 {
                tracing::warn!(
                    subscription = &*self.state.plan.request.name,
                    topic = &*topic,
                    partition,
                    unclean_ends = unclean_ends - 1,
                    "the partition's consumer ended without a last commit"
                );
            }
            let is_retry = self.state.plan.is_retry(&topic);
            let poller = Arc::clone(&self.state.poller);
            let partition =
                Partition::new(Arc::clone(&poller), topic, partition, is_retry, tracker);
            let mut element = list.add_partition(&partition.topic, partition.id);
            if let Err(error) = element.set_offset(start) {
                tracing::error!(%error, "librdkafka refuses the start offset of a partition");
            }
            queues.extend(PartitionQueue::new(&self.consumer, Arc::new(partition), poller));
        }
        let names: Vec<_> = queues
            .iter()
            .map(|queue| format!("{} [{}]", queue.partition.topic, queue.partition.id))
            .collect();
        if let Err(error) = self.answer_assign(&list) {
            tracing::error!(%error, "partitions could not be taken over; it joins the group again");
            return;
        }
        tracing::info!(
            subscription = &*self.state.plan.request.name,
            partitions = names.join(", "),
            "partitions taken over"
        );
        if !self.is_cooperative() {
            self.queues.clear();
        }
        self.queues.append(&mut queues);
        self.membership.joined();
        // Before the first record is delivered.
        self.report();
    }

    fn start_revoke(
        &mut self,
        list: TopicPartitionList,
        lost: bool,
        now: Instant,
    ) -> Result<RebalanceState, KafkaError> {
        self.pass_gaps();
        let eager = !self.is_cooperative();
        let is_revoked = |queue: &PartitionQueue| {
            eager || list.find_partition(&queue.partition.topic, queue.partition.id).is_some()
        };
        let (revoked, kept): (Vec<_>, _) =
            std::mem::take(&mut self.queues).into_iter().partition(is_revoked);
        self.queues = kept;
        let partitions: Vec<_> = revoked.into_iter().map(PartitionQueue::end).collect();
        self.state.discard_revoked();
        if lost || self.consumer.assignment_lost() {
            return self.close_uncommitted(&list, &partitions, true);
        }
        let drain = self.state.plan.subscription.revoke_drain;
        let until = now + drain.min(self.state.plan.subscription.max_poll_interval / 2);
        Ok(RebalanceState::Draining { list, partitions, until })
    }

    fn start_last_commit(
        &mut self,
        list: TopicPartitionList,
        partitions: &[Arc<Partition>],
        now: Instant,
    ) -> Result<RebalanceState, KafkaError> {
        let draft = |partition: &Arc<Partition>| Some((Arc::clone(partition), partition.close()?));
        let drafts: Drafts = partitions.iter().filter_map(draft).collect();
        if drafts.is_empty() {
            return self.close_uncommitted(&list, partitions, false);
        }
        self.commit_last(list, drafts, now + LAST_COMMIT)
    }

    fn commit_last(
        &mut self,
        list: TopicPartitionList,
        drafts: Drafts,
        until: Instant,
    ) -> Result<RebalanceState, KafkaError> {
        if drafts.is_empty() {
            self.answer_revoke(&list)?;
            return Ok(RebalanceState::Idle);
        }
        let ticket = self.committer.commit_last(drafts.clone());
        Ok(RebalanceState::Committing { list, drafts, ticket, retry_at: None, until })
    }

    /// Handles the outcome of the last commits of a revoke.
    pub(super) fn last_commit_done(&mut self, of: u64, succeeded: bool) -> Result<(), KafkaError> {
        let RebalanceState::Committing { list, ticket, retry_at, .. } = &mut self.rebalance_state
        else {
            return Ok(());
        };
        if *ticket != of {
            return Ok(());
        }
        if !succeeded {
            *retry_at = Some(Instant::now() + RETRY_AFTER);
            return Ok(());
        }
        let list = list.clone();
        self.rebalance_state = RebalanceState::Idle;
        self.answer_revoke(&list)
    }

    /// Ends the assignments of partitions without a commit, and answers the revoke.
    fn close_uncommitted(
        &mut self,
        list: &TopicPartitionList,
        partitions: &[Arc<Partition>],
        lost: bool,
    ) -> Result<RebalanceState, KafkaError> {
        for partition in partitions {
            partition.close();
        }
        if lost {
            tracing::warn!(
                subscription = &*self.state.plan.request.name,
                partitions = partitions.len(),
                "partitions are lost; nothing is committed for them"
            );
            self.membership.lost();
        }
        self.answer_revoke(list)?;
        Ok(RebalanceState::Idle)
    }

    fn is_cooperative(&self) -> bool {
        matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Cooperative)
    }

    fn answer_assign(&self, list: &TopicPartitionList) -> Result<(), KafkaError> {
        self.answered(match self.is_cooperative() {
            true => self.consumer.incremental_assign(list),
            false => self.consumer.assign(list),
        })
    }

    fn answer_revoke(&self, list: &TopicPartitionList) -> Result<(), KafkaError> {
        self.answered(match self.is_cooperative() {
            // Partitions that are not consumed were never assigned.
            true => {
                let mut consumed = TopicPartitionList::with_capacity(list.count());
                for element in list.elements() {
                    if self.state.plan.is_consumed(element.topic()) {
                        consumed.add_partition(element.topic(), element.partition());
                    }
                }
                self.consumer.incremental_unassign(&consumed)
            }
            false => self.consumer.unassign(),
        })
    }

    fn answered(&self, result: Result<(), RdError>) -> Result<(), KafkaError> {
        result.map_err(|error| {
            let reason = self.consumer.context().events.reason(error);
            let text = format!("librdkafka refused the answer to a rebalance: {reason}");
            KafkaError::new(ErrorKind::Broker, text)
        })
    }

    /// Answers all rebalances, so that the client can be destroyed. That may take a while, on the thread that drops
    /// the last reference.
    pub(super) fn leave(mut self) {
        self.queues.clear();
        self.committer.cancel();
        let context = Arc::clone(self.consumer.context());
        context.leave();
        let pending = match std::mem::take(&mut self.rebalance_state) {
            RebalanceState::Idle => None,
            RebalanceState::Assigning { list, .. } => Some(Rebalance::Assign(list)),
            RebalanceState::Draining { list, .. } | RebalanceState::Committing { list, .. } => {
                Some(Rebalance::Revoke { list, lost: false })
            }
        };
        // An unanswered rebalance would keep the client from closing.
        for rebalance in pending.into_iter().chain(std::iter::from_fn(|| context.next_rebalance()))
        {
            let answered = match rebalance {
                Rebalance::Assign(_) => self.answer_assign(&TopicPartitionList::new()),
                Rebalance::Revoke { list, .. } => self.answer_revoke(&list),
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "while leaving the group");
            }
        }
    }
}
