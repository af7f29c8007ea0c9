//! How a session answers the group: it takes partitions over, and gives them up in good order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::StartAt;
use rdkafka::consumer::{Consumer as _, RebalanceProtocol};
use rdkafka::error::KafkaError as RdError;
use rdkafka::{Offset, TopicPartitionList};

use super::clerk::{Drafts, renew};
use super::context::Rebalance;
use super::lane::Lane;
use super::ledger::Ledger;
use super::partition::Partition;
use super::places::{Start, Wanted};
use super::quarantine::{Process, Rule};
use super::rebalance_state::RebalanceState;
use super::session::Session;
use crate::error::{ErrorKind, KafkaError};

/// How long the last commits of a revoke are waited for.
const LAST_COMMIT: Duration = Duration::from_secs(5);
/// Between two attempts at a look-up or a last commit.
const AGAIN: Duration = Duration::from_millis(250);

impl Session {
    /// Goes on with what is being answered, or begins with what was asked.
    pub(super) fn advance_rebalance(&mut self, now: Instant) -> Result<(), KafkaError> {
        self.rebalance_state = match std::mem::take(&mut self.rebalance_state) {
            RebalanceState::Idle => match self.consumer.context().next_rebalance() {
                None => RebalanceState::Idle,
                Some(Rebalance::Assign(list)) => self.start_assign(list),
                Some(Rebalance::Revoke { list, lost }) => self.start_revoke(list, lost, now)?,
            },
            RebalanceState::Assigning { list, ticket, again } => {
                if self.consumer.context().has_rebalance() {
                    // It is taken away again already.
                    self.clerk.cancel();
                    self.answer_assign(&TopicPartitionList::new())?;
                    RebalanceState::Idle
                } else if again.is_some_and(|again| now >= again) {
                    self.start_assign(list)
                } else {
                    RebalanceState::Assigning { list, ticket, again }
                }
            }
            RebalanceState::Draining { list, partitions, until } => {
                let running: usize = partitions.iter().map(|partition| partition.running()).sum();
                if self.consumer.assignment_lost() {
                    self.give_up(&list, &partitions, true)?
                } else if running == 0 || now >= until {
                    if running > 0 {
                        tracing::warn!(
                            subscription = &*self.plan.request.name,
                            running,
                            "handlers run on while their partitions go to others, \
                             where their messages come again"
                        );
                    }
                    self.start_last_commit(list, &partitions, now)?
                } else {
                    RebalanceState::Draining { list, partitions, until }
                }
            }
            RebalanceState::Committing { list, drafts, ticket, again, until } => {
                if now >= until || self.consumer.assignment_lost() {
                    self.clerk.cancel();
                    tracing::warn!(
                        subscription = &*self.plan.request.name,
                        "partitions are given up without a last commit; \
                         what was settled since the one before comes again"
                    );
                    self.answer_revoke(&list)?;
                    RebalanceState::Idle
                } else if again.is_some_and(|again| now >= again) {
                    self.commit_last(list, renew(&drafts), until)?
                } else {
                    RebalanceState::Committing { list, drafts, ticket, again, until }
                }
            }
        };
        Ok(())
    }

    fn start_assign(&mut self, list: TopicPartitionList) -> RebalanceState {
        let elements = list.elements();
        let meant = elements.iter().filter(|element| self.plan.is_meant(element.topic()));
        let wanted = meant.map(|element| Wanted {
            topic: element.topic().into(),
            partition: element.partition(),
            // A copy must not be missed, however new its topic is.
            start: match self.plan.is_retry(element.topic()) {
                true => StartAt::default(),
                false => self.plan.request.start,
            },
        });
        let ticket = self.clerk.look_up(wanted.collect());
        RebalanceState::Assigning { list, ticket, again: None }
    }

    /// The committed offsets are known.
    pub(super) fn found(&mut self, of: u64, result: Result<Vec<Start>, RdError>) {
        match std::mem::take(&mut self.rebalance_state) {
            RebalanceState::Assigning { list, ticket, .. } if ticket == of => match result {
                Ok(starts) => self.assign(starts),
                Err(error) => {
                    let error = self.consumer.context().events.reason(error);
                    tracing::warn!(
                        subscription = &*self.plan.request.name,
                        error,
                        "committed offsets could not be looked up; it is tried again"
                    );
                    self.absent = Some(error.into());
                    let again = Some(Instant::now() + AGAIN);
                    self.rebalance_state = RebalanceState::Assigning { list, ticket, again };
                }
            },
            other => self.rebalance_state = other,
        }
    }

    fn assign(&mut self, starts: Vec<Start>) {
        let mut list = TopicPartitionList::with_capacity(starts.len());
        let mut lanes = Vec::with_capacity(starts.len());
        let rule = Rule {
            max_crashes: self.plan.request.max_crashes,
            concurrency: self.plan.request.concurrency,
            retry: self.plan.request.retry.clone(),
            process: Process::this(),
        };
        for Start { topic, partition, takeover } in starts {
            let begin = Offset::Offset(takeover.position);
            let ledger = Ledger::new(takeover, rule.clone());
            let unclean_ends = ledger.unclean_ends();
            if unclean_ends > 1 {
                tracing::warn!(
                    subscription = &*self.plan.request.name,
                    topic = &*topic,
                    partition,
                    unclean_ends = unclean_ends - 1,
                    "the partition's consumer ended without a last commit"
                );
            }
            let is_retry = self.plan.is_retry(&topic);
            let shared = Arc::clone(&self.shared);
            let partition = Partition::new(shared, topic, partition, is_retry, ledger);
            let mut element = list.add_partition(&partition.topic, partition.id);
            if let Err(error) = element.set_offset(begin) {
                tracing::error!(%error, "an offset that librdkafka does not take");
            }
            lanes.extend(Lane::new(&self.consumer, Arc::new(partition)));
        }
        let names: Vec<_> = lanes
            .iter()
            .map(|lane| format!("{} [{}]", lane.partition.topic, lane.partition.id))
            .collect();
        if let Err(error) = self.answer_assign(&list) {
            tracing::error!(%error, "partitions could not be taken over; the group is joined anew");
            return;
        }
        tracing::info!(
            subscription = &*self.plan.request.name,
            partitions = names.join(", "),
            "partitions taken over"
        );
        if !self.is_cooperative() {
            self.lanes.clear();
        }
        self.lanes.append(&mut lanes);
        self.is_member = true;
        self.absent = None;
        // Before the first record.
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
        let goes = |lane: &Lane| {
            eager || list.find_partition(&lane.partition.topic, lane.partition.id).is_some()
        };
        let (gone, stay): (Vec<_>, _) = std::mem::take(&mut self.lanes).into_iter().partition(goes);
        self.lanes = stay;
        let partitions: Vec<_> = gone.into_iter().map(Lane::end).collect();
        self.shared.discard_revoked();
        if lost || self.consumer.assignment_lost() {
            return self.give_up(&list, &partitions, true);
        }
        let drain = self.plan.subscription.revoke_drain;
        let until = now + drain.min(self.plan.subscription.max_poll_interval / 2);
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
            return self.give_up(&list, partitions, false);
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
        let ticket = self.clerk.commit_last(drafts.clone());
        Ok(RebalanceState::Committing { list, drafts, ticket, again: None, until })
    }

    /// The last commits of a revoke were answered.
    pub(super) fn last_commit_done(&mut self, of: u64, succeeded: bool) -> Result<(), KafkaError> {
        let RebalanceState::Committing { list, ticket, again, .. } = &mut self.rebalance_state
        else {
            return Ok(());
        };
        if *ticket != of {
            return Ok(());
        }
        if !succeeded {
            *again = Some(Instant::now() + AGAIN);
            return Ok(());
        }
        let list = list.clone();
        self.rebalance_state = RebalanceState::Idle;
        self.answer_revoke(&list)
    }

    /// Ends the epochs of partitions without a commit, and lets them go.
    fn give_up(
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
                subscription = &*self.plan.request.name,
                partitions = partitions.len(),
                "partitions are lost; nothing is committed for them"
            );
            self.is_member = false;
            self.absent = Some("its partitions were lost; it joins the group again".into());
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
            // What is not meant was never assigned.
            true => {
                let mut meant = TopicPartitionList::with_capacity(list.count());
                for element in list.elements() {
                    if self.plan.is_meant(element.topic()) {
                        meant.add_partition(element.topic(), element.partition());
                    }
                }
                self.consumer.incremental_unassign(&meant)
            }
            false => self.consumer.unassign(),
        })
    }

    fn answered(&self, result: Result<(), RdError>) -> Result<(), KafkaError> {
        result.map_err(|error| {
            let words = self.consumer.context().events.reason(error);
            KafkaError::new(ErrorKind::Broker, format!("the group's answer was refused: {words}"))
        })
    }

    /// Lets everything go, so that the client can be destroyed. That may take a while: it happens on
    /// the thread that drops the last reference.
    pub(super) fn leave(mut self) {
        self.lanes.clear();
        self.clerk.cancel();
        let context = Arc::clone(self.consumer.context());
        context.leave();
        let pending = match std::mem::take(&mut self.rebalance_state) {
            RebalanceState::Idle => None,
            RebalanceState::Assigning { list, .. } => Some(Rebalance::Assign(list)),
            RebalanceState::Draining { list, .. } | RebalanceState::Committing { list, .. } => {
                Some(Rebalance::Revoke { list, lost: false })
            }
        };
        // An unanswered question would keep the client from closing.
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
