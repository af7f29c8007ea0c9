//! One session of a subscription: the poll loop over one librdkafka consumer, from its start to its end. Run by the
//! [`supervisor`](super::supervisor).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use cqrs_core::StartAt;
use cqrs_core::consume::SubscribeErrorKind;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError as RdError;
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::commit_schedule::CommitSchedule;
use super::committer::{Committer, Drafts, JobOutcome, renew};
use super::context::Context;
use super::copier::Copier;
use super::membership::{Membership, is_forbidden};
use super::partition::{Partition, total_activity};
use super::partition_queue::PartitionQueue;
use super::quarantine::Activity;
use super::rebalance_state::RebalanceState;
use super::subscription_state::{CloseOutcome, OpenState, SubscriptionState};
use crate::error::{ErrorKind, KafkaError};
use crate::events::Events;

/// The longest wait of the poll loop: changes without a wake-up (statistics, deadlines) are noticed after it.
const TICK: Duration = Duration::from_millis(100);
/// The same while a rebalance is answered, or the delivery of a partition is limited.
const SHORT_TICK: Duration = Duration::from_millis(10);
/// The time for which a bound is full before the status reports it.
const FULL_AFTER: Duration = Duration::from_secs(5);
/// Client events that are served before records are delivered again.
const EVENTS: usize = 16;

/// The end of a session.
#[derive(Debug)]
pub(super) enum Exit {
    Closed(CloseOutcome),
    /// The subscription cannot continue.
    Failed(SubscribeErrorKind, KafkaError),
    /// This client cannot continue, a new one can. Records settled since the last commit are redelivered.
    Replace(KafkaError),
}

/// Owned by the poll thread.
pub(super) struct Session {
    pub(super) state: Arc<SubscriptionState>,
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) committer: Committer,
    pub(super) queues: Vec<PartitionQueue>,
    copier: Copier,
    pub(super) rebalance_state: RebalanceState,
    pub(super) membership: Membership,
    commits: CommitSchedule,
    next_check: Instant,
    /// The first queue of the last round (round robin).
    first_queue: usize,
}

impl Session {
    pub(super) fn open(state: Arc<SubscriptionState>, events: Events) -> Result<Self, KafkaError> {
        let plan = Arc::clone(&state.plan);
        let context = Context::new(events.clone());
        let made = plan.client.create_with_context(context);
        let mut consumer: BaseConsumer<Context> =
            made.map_err(|error| KafkaError::config(events.reason(error)))?;
        let poller = Arc::clone(&state.poller);
        consumer.set_nonempty_callback(move || poller.wake());
        let consumer = Arc::new(consumer);
        let names: Vec<_> = plan.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&names).map_err(|error| KafkaError::config(events.reason(error)))?;
        let lists_topics = plan.request.start != StartAt::default();
        let (poller, topics) = (Arc::clone(&state.poller), Arc::clone(&state.topics_at_start));
        let committer = Committer::start(Arc::clone(&consumer), poller, topics, lists_topics);
        let committer = committer.map_err(|error| {
            let text = "the system gives no thread to the consumer";
            KafkaError::config(text).with_source(error)
        })?;
        let now = Instant::now();
        Ok(Self {
            commits: CommitSchedule::new(plan.subscription.commit_interval, now),
            state,
            consumer,
            committer,
            queues: Vec::new(),
            copier: Copier::default(),
            rebalance_state: RebalanceState::Idle,
            membership: Membership::default(),
            next_check: now,
            first_queue: 0,
        })
    }

    pub(super) fn run(mut self) -> Exit {
        let exit = self.serve();
        if let Exit::Failed(..) | Exit::Replace(_) = &exit {
            self.abandon();
        }
        self.leave();
        exit
    }

    fn serve(&mut self) -> Exit {
        loop {
            self.serve_events();
            while let Some(outcome) = self.committer.take() {
                if let Err(failure) = self.take_outcome(outcome) {
                    return Exit::Replace(failure);
                }
            }
            if let Some(end) = self.state.closes_at() {
                return Exit::Closed(self.close(end));
            }
            let now = Instant::now();
            if let Err(failure) = self.advance_rebalance(now) {
                return Exit::Replace(failure);
            }
            let busy = self.deliver(now);
            if self.commits.is_due(now, || self.queues.iter().any(|queue| queue.is_urgent)) {
                self.commit(now);
            }
            if now >= self.next_check {
                self.next_check = now + TICK;
                if let Some(exit) = self.check() {
                    return exit;
                }
            }
            if !busy {
                thread::park_timeout(self.pause());
            }
        }
    }

    /// Serves librdkafka's events. Records come through the partitions' queues.
    fn serve_events(&mut self) {
        for _ in 0..EVENTS {
            let Some(Ok(message)) = self.consumer.poll(Duration::ZERO) else { continue };
            let of = |queue: &&mut PartitionQueue| {
                queue.partition.id == message.partition()
                    && *queue.partition.topic == *message.topic()
            };
            if let Some(queue) = self.queues.iter_mut().find(of) {
                queue.accept(self.copier.copy(&message));
            }
        }
    }

    /// Delivers fetched records, as far as there is room. `true`: there may be more.
    fn deliver(&mut self, now: Instant) -> bool {
        let mut all = Activity::default();
        if self.queues.iter().any(|queue| queue.partition.is_limited()) {
            all = total_activity(self.queues.iter().map(|queue| &*queue.partition));
        }
        if self.state.is_stopped() {
            self.queues.iter_mut().for_each(|queue| queue.advance(false, all, now));
            return false;
        }
        self.state.share_among(self.queues.len(), self.state.plan.request.concurrency);
        let mut more = false;
        self.first_queue = self.first_queue.wrapping_add(1);
        for position in 0..self.queues.len() {
            let index = self.first_queue.wrapping_add(position) % self.queues.len();
            let queue = &mut self.queues[index];
            let room = self.state.room(&queue.partition);
            queue.advance(!room.is_zero(), all, now);
            if room.is_zero() {
                queue.full_since.get_or_insert(now);
                continue;
            }
            queue.full_since = None;
            more |= queue.deliver(&self.state, &mut self.copier, room);
        }
        more
    }

    /// The reason why a partition is not fetched, if its bound has been full for a while.
    fn full_bound(&self) -> Option<Arc<str>> {
        let is_full =
            |queue: &&PartitionQueue| queue.full_since.is_some_and(|at| at.elapsed() >= FULL_AFTER);
        let mut full = self.queues.iter().filter(is_full);
        let partition = &full.next()?.partition;
        let others = match full.count() {
            0 => String::new(),
            others => format!(" (and {others} more partitions)"),
        };
        let share = self.state.share();
        let text = format!(
            "{} [{}]{others}: no more is fetched until some records are settled; at most {} records or {} \
             bytes of a partition may be unsettled (max_unsettled, max_unsettled_bytes)",
            partition.topic, partition.id, share.records, share.bytes,
        );
        Some(text.into())
    }

    fn pause(&self) -> Duration {
        let is_limited = || self.queues.iter().any(|queue| queue.partition.is_limited());
        let tick = if self.rebalance_state.is_idle() && !is_limited() { TICK } else { SHORT_TICK };
        let now = SystemTime::now();
        let due = self.queues.iter().filter_map(PartitionQueue::due).min();
        let due = due.map(|due| due.duration_since(now).unwrap_or_default());
        due.map_or(tick, |due| due.min(tick))
    }

    /// Commits changed partitions.
    fn commit(&mut self, now: Instant) {
        if self.commits.starts_interval(now) {
            self.pass_gaps();
        }
        self.queues.iter_mut().for_each(|queue| queue.is_urgent = false);
        let of = |queue: &PartitionQueue| {
            Some((Arc::clone(&queue.partition), queue.partition.tracker().draft()?))
        };
        let drafts: Drafts = self.queues.iter().filter_map(of).collect();
        if !drafts.is_empty() {
            self.commits.sent();
            self.committer.commit(drafts);
        }
    }

    /// Moves the partitions' positions past offsets without a record (control records of transactions, for example).
    pub(super) fn pass_gaps(&self) {
        // librdkafka's position is behind all that was taken out of the queues, control records included.
        let Ok(positions) = self.consumer.position() else { return };
        for queue in &self.queues {
            let found = positions.find_partition(&queue.partition.topic, queue.partition.id);
            if let Some(Offset::Offset(position)) = found.map(|found| found.offset()) {
                queue.pass(position);
            }
        }
    }

    fn take_outcome(&mut self, outcome: JobOutcome) -> Result<(), KafkaError> {
        match outcome {
            JobOutcome::Committed { drafts, failed, last, result } => {
                if last.is_none() {
                    self.commits.answered();
                }
                let succeeded = result.is_ok();
                for (partition, draft) in &drafts {
                    partition.tracker().committed(draft);
                }
                if let Err(error) = result {
                    self.refused(&failed, &error);
                    if self.commits.failed(Instant::now()) {
                        let subscription = &*self.state.plan.request.name;
                        let error = self.consumer.context().events.reason(error);
                        tracing::warn!(subscription, error, "a commit failed; it is tried again");
                    }
                }
                if let Some(ticket) = last {
                    return self.last_commit_done(ticket, succeeded);
                }
            }
            JobOutcome::Found { ticket, result } => self.found(ticket, result),
        }
        Ok(())
    }

    /// If the group refuses the commits that the quarantine needs, records are delivered without them.
    fn refused(&self, failed: &Drafts, error: &RdError) {
        let code = error.rdkafka_error_code();
        let refuses_metadata = code == Some(Code::OffsetMetadataTooLarge);
        if !refuses_metadata && !code.is_some_and(is_forbidden) {
            return;
        }
        failed
            .iter()
            .for_each(|(partition, draft)| partition.tracker().refused(draft, refuses_metadata));
        if !self.state.refusal_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                subscription = &*self.state.plan.request.name,
                %error,
                "the group refuses commits; crashes are not counted"
            );
        }
    }

    /// Checks the connection and librdkafka's errors. `Some`: the session is over.
    fn check(&mut self) -> Option<Exit> {
        let context = Arc::clone(self.consumer.context());
        let events = &context.events;
        if events.health.is_connecting()
            && self.consumer.client().fetch_cluster_id(Duration::ZERO).is_some()
        {
            events.health.report_up();
        }
        for error in context.take_errors() {
            if let Err((kind, error)) = self.membership.handle_error(error, &self.state.plan) {
                return Some(Exit::Failed(kind, error));
            }
        }
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            let text = format!("the consumer failed: {}", events.redactor.redact(&reason));
            let error = KafkaError::new(ErrorKind::Fatal, text);
            // Another member has the same `group_instance_id`: the two would fence each other forever.
            let kind = match code {
                Code::FencedInstanceId => SubscribeErrorKind::Conflict,
                _ => SubscribeErrorKind::Other,
            };
            return Some(Exit::Failed(kind, error));
        }
        if events.health.has_lost_all_brokers() {
            let text = "the cluster reported no brokers, and the consumer dropped them all";
            return Some(Exit::Replace(KafkaError::new(ErrorKind::Connection, text)));
        }
        let waiting = matches!(*self.state.opening.borrow(), OpenState::Waiting);
        if waiting {
            if let Some(error) = events.health.refusal() {
                self.report();
                let kind = match error.kind() {
                    ErrorKind::Authentication => SubscribeErrorKind::Forbidden,
                    _ => SubscribeErrorKind::Other,
                };
                return Some(Exit::Failed(kind, error));
            }
            if !events.health.is_connecting() {
                self.state.opening.send_replace(OpenState::Open);
            }
        }
        self.report();
        None
    }

    /// Reports the status.
    pub(super) fn report(&self) {
        let connection = self.consumer.context().events.health.state();
        if let Some(status) = self.membership.status(connection, || self.full_bound()) {
            self.state.plan.request.status.report(status);
        }
    }

    /// Makes the last commits, until shortly before `end`.
    fn close(&mut self, end: Instant) -> CloseOutcome {
        self.pass_gaps();
        let mut open: Vec<Arc<Partition>> =
            self.queues.drain(..).map(PartitionQueue::end).collect();
        open.extend(self.rebalance_state.partitions());
        let close = |partition: Arc<Partition>| {
            let draft = partition.close()?;
            Some((partition, draft))
        };
        let drafts: Drafts = open.into_iter().filter_map(close).collect();
        self.state.discard_revoked();
        if drafts.is_empty() {
            return CloseOutcome::Clean;
        }
        // These commits include the ones of earlier jobs.
        self.committer.cancel();
        let mut ticket = self.committer.commit_last(drafts);
        let mut reason: Arc<str> = "the broker did not answer in time".into();
        loop {
            self.serve_events();
            match self.committer.take() {
                Some(JobOutcome::Committed { last: Some(of), result, failed, .. })
                    if of == ticket =>
                {
                    let Err(error) = result else { return CloseOutcome::Clean };
                    self.refused(&failed, &error);
                    reason = self.consumer.context().events.reason(error).into();
                    thread::park_timeout(TICK);
                    ticket = self.committer.commit_last(renew(&failed));
                }
                Some(_) => {}
                None => thread::park_timeout(SHORT_TICK),
            }
            if Instant::now() >= end {
                return CloseOutcome::Uncommitted(reason);
            }
        }
    }

    /// Ends the assignments without a commit.
    fn abandon(&mut self) {
        for partition in
            self.queues.drain(..).map(PartitionQueue::end).chain(self.rebalance_state.partitions())
        {
            partition.close();
        }
        self.state.discard_revoked();
    }
}
