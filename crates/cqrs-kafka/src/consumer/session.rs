//! The poll loop over one librdkafka consumer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use cqrs_core::StartAt;
use cqrs_core::broker::BrokerState;
use cqrs_core::consume::{SourceStatus, SubscribeErrorKind};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError as RdError;
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::clerk::{Clerk, Done, Drafts, is_forbidden, renew};
use super::context::{Context, Trouble};
use super::lane::Lane;
use super::partition::Partition;
use super::plan::Plan;
use super::quarantine::Activity;
use super::rebalance_state::RebalanceState;
use super::shared::{Ending, Opening, Shared};
use crate::error::{ErrorKind, KafkaError};
use crate::events::Events;

/// Between two looks at what wakes nobody (statistics, deadlines), at most.
const TICK: Duration = Duration::from_millis(100);
/// The same while a rebalance is answered, or a partition is careful.
const SHORT_TICK: Duration = Duration::from_millis(10);
/// After a commit that failed, until the next one.
const AGAIN: Duration = Duration::from_millis(250);
/// Between two logs of commits that failed, at least.
const LOG_AGAIN: Duration = Duration::from_secs(10);
/// How long a bound is full before the status says so.
const FULL: Duration = Duration::from_secs(5);
/// Events that are served before records are looked at again.
const EVENTS: usize = 16;

/// How a session ended.
#[derive(Debug)]
pub(super) enum Exit {
    Closed(Ending),
    /// The subscription cannot go on.
    Failed(SubscribeErrorKind, KafkaError),
    /// This client cannot go on, a new one can. What was settled since the last commit comes again.
    Replace(KafkaError),
}

/// One librdkafka consumer, from its start to its end. Lives on the poll thread.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) plan: Arc<Plan>,
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Consumer,
    pub(super) clerk: Clerk,
    pub(super) lanes: Vec<Lane>,
    pub(super) rebalance_state: RebalanceState,
    /// Whether commits are on their way.
    committing: bool,
    next_commit: Instant,
    /// No commit before, however urgent.
    no_commit_until: Instant,
    next_look: Instant,
    /// When it was logged last that a commit failed.
    failure_logged: Option<Instant>,
    /// Whether the group gave its answer, and it was not lost since.
    pub(super) is_member: bool,
    /// Why it is not, as far as librdkafka said.
    pub(super) absent: Option<Arc<str>>,
    first_lane: usize,
}

/// Debug without the client's insides.
pub(super) struct Consumer(pub(super) Arc<BaseConsumer<Context>>);

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BaseConsumer")
    }
}

impl std::ops::Deref for Consumer {
    type Target = Arc<BaseConsumer<Context>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Session {
    pub(super) fn open(
        plan: Arc<Plan>,
        shared: Arc<Shared>,
        events: Events,
    ) -> Result<Self, KafkaError> {
        let context = Context::new(events.clone());
        let made = plan.client.create_with_context(context);
        let mut consumer: BaseConsumer<Context> =
            made.map_err(|error| KafkaError::config(events.reason(error)))?;
        let waker = Arc::clone(&shared);
        consumer.set_nonempty_callback(move || waker.wake_poller());
        let consumer = Arc::new(consumer);
        let names: Vec<_> = plan.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&names).map_err(|error| KafkaError::config(events.reason(error)))?;
        let lists_topics = plan.request.start != StartAt::default();
        let clerk = Clerk::start(Arc::clone(&consumer), Arc::clone(&shared), lists_topics);
        let clerk = clerk.map_err(|error| {
            let text = "the system gives no thread to the consumer";
            KafkaError::with_source(ErrorKind::Configuration, text, error)
        })?;
        let now = Instant::now();
        Ok(Self {
            next_commit: now + plan.subscription.commit_interval,
            plan,
            shared,
            consumer: Consumer(consumer),
            clerk,
            lanes: Vec::new(),
            rebalance_state: RebalanceState::Idle,
            committing: false,
            no_commit_until: now,
            next_look: now,
            failure_logged: None,
            is_member: false,
            absent: None,
            first_lane: 0,
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
            while let Some(done) = self.clerk.take() {
                if let Err(failure) = self.take_done(done) {
                    return Exit::Replace(failure);
                }
            }
            if let Some(end) = self.shared.closes_at() {
                return Exit::Closed(self.close(end));
            }
            let now = Instant::now();
            if let Err(failure) = self.advance_rebalance(now) {
                return Exit::Replace(failure);
            }
            let busy = self.pump(now);
            let is_urgent = || self.lanes.iter().any(|lane| lane.is_urgent);
            if now >= self.next_commit || now >= self.no_commit_until && is_urgent() {
                self.commit(now);
            }
            if now >= self.next_look {
                self.next_look = now + TICK;
                if let Some(exit) = self.look() {
                    return exit;
                }
            }
            if !busy {
                thread::park_timeout(self.pause());
            }
        }
    }

    /// Serves what librdkafka has to say. Records come by the lanes.
    fn serve_events(&mut self) {
        for _ in 0..EVENTS {
            let Some(Ok(message)) = self.consumer.0.poll(Duration::ZERO) else { continue };
            let of = |lane: &&mut Lane| {
                lane.partition.id == message.partition()
                    && *lane.partition.topic == *message.topic()
            };
            if let Some(lane) = self.lanes.iter_mut().find(of) {
                lane.accept(&message);
            }
        }
    }

    /// Hands out what was fetched, as far as there is room. `true`: there may be more.
    fn pump(&mut self, now: Instant) -> bool {
        let mut all = Activity::default();
        if self.lanes.iter().any(|lane| lane.partition.is_careful()) {
            for Activity { running, begun } in
                self.lanes.iter().map(|lane| lane.partition.activity())
            {
                all = Activity { running: all.running + running, begun: all.begun + begun };
            }
        }
        if self.shared.is_stopped() {
            self.lanes.iter_mut().for_each(|lane| lane.look(false, all, now));
            return false;
        }
        self.shared.share_among(self.lanes.len(), self.plan.request.concurrency);
        let mut more = false;
        self.first_lane = self.first_lane.wrapping_add(1);
        for turn in 0..self.lanes.len() {
            let index = self.first_lane.wrapping_add(turn) % self.lanes.len();
            let lane = &mut self.lanes[index];
            let room = self.shared.room(&lane.partition);
            lane.look(room > 0, all, now);
            if room == 0 {
                lane.full_since.get_or_insert(now);
                continue;
            }
            lane.full_since = None;
            more |= lane.pump(&self.shared, room);
        }
        more
    }

    /// Which partition has had a full bound for a while: its records are not settled, or slowly.
    fn full_bound(&self) -> Option<Arc<str>> {
        let is_full = |lane: &&Lane| lane.full_since.is_some_and(|at| at.elapsed() >= FULL);
        let mut full = self.lanes.iter().filter(is_full);
        let partition = &full.next()?.partition;
        let others = match full.count() {
            0 => String::new(),
            others => format!(" (and {others} more partitions)"),
        };
        let share = self.shared.share();
        let text = format!(
            "{} [{}]{others}: no more is fetched until some records are settled; at most {} records or {} \
             bytes of a partition may be unsettled (max_unsettled, max_unsettled_bytes)",
            partition.topic, partition.id, share.records, share.bytes,
        );
        Some(text.into())
    }

    fn pause(&self) -> Duration {
        let is_careful = || self.lanes.iter().any(|lane| lane.partition.is_careful());
        let tick = if self.rebalance_state.is_idle() && !is_careful() { TICK } else { SHORT_TICK };
        let now = SystemTime::now();
        let due = self.lanes.iter().filter_map(Lane::due).min();
        let due = due.map(|due| due.duration_since(now).unwrap_or_default());
        due.map_or(tick, |due| due.min(tick))
    }

    /// Commits what is new, unless the last commits are still on their way.
    fn commit(&mut self, now: Instant) {
        if self.committing {
            return;
        }
        if now >= self.next_commit {
            self.next_commit = now + self.plan.subscription.commit_interval;
            self.pass_gaps();
        }
        self.lanes.iter_mut().for_each(|lane| lane.is_urgent = false);
        let of = |lane: &Lane| Some((Arc::clone(&lane.partition), lane.partition.draft()?));
        let drafts: Drafts = self.lanes.iter().filter_map(of).collect();
        if !drafts.is_empty() {
            self.committing = true;
            self.clerk.commit(drafts);
        }
    }

    /// Lets the partitions' places pass what is no record: control records of transactions, for example.
    pub(super) fn pass_gaps(&self) {
        // librdkafka's position is behind everything that was taken out of the queues, control records too.
        let Ok(positions) = self.consumer.position() else { return };
        for lane in &self.lanes {
            let found = positions.find_partition(&lane.partition.topic, lane.partition.id);
            if let Some(Offset::Offset(position)) = found.map(|found| found.offset()) {
                lane.pass(position);
            }
        }
    }

    fn take_done(&mut self, done: Done) -> Result<(), KafkaError> {
        match done {
            Done::Committed { drafts, failed, last, result } => {
                if last.is_none() {
                    self.committing = false;
                }
                let succeeded = result.is_ok();
                for (partition, draft) in &drafts {
                    partition.committed(draft);
                }
                match result {
                    Ok(()) => {}
                    Err(error) => {
                        self.refused(&failed, &error);
                        // A lane may wait for it.
                        self.no_commit_until = Instant::now() + AGAIN;
                        self.next_commit = self.next_commit.min(self.no_commit_until);
                        let error = self.consumer.context().events.reason(error);
                        self.log_failed_commit(&error);
                    }
                }
                if let Some(ticket) = last {
                    return self.last_commit_done(ticket, succeeded);
                }
            }
            Done::Found { ticket, result } => self.found(ticket, result),
        }
        Ok(())
    }

    /// Logged again after a while: it is tried several times a second.
    fn log_failed_commit(&mut self, error: &str) {
        if self.failure_logged.is_some_and(|at| at.elapsed() < LOG_AGAIN) {
            return;
        }
        self.failure_logged = Some(Instant::now());
        let name = &*self.plan.request.name;
        tracing::warn!(subscription = name, error, "a commit failed; it is tried again");
    }

    /// Where the group does not take what the quarantine needs, records are handed out all the same.
    fn refused(&self, failed: &Drafts, error: &RdError) {
        let code = error.rdkafka_error_code();
        let is_bare = code == Some(Code::OffsetMetadataTooLarge);
        if !is_bare && !code.is_some_and(is_forbidden) {
            return;
        }
        failed.iter().for_each(|(partition, draft)| partition.refused(draft, is_bare));
        if !self.shared.refusal_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                subscription = &*self.plan.request.name,
                %error,
                "the group refuses commits; crashes are not counted"
            );
        }
    }

    /// Looks at what tells nobody: the connection, errors. `Some`: the session is over.
    fn look(&mut self) -> Option<Exit> {
        let context = Arc::clone(self.consumer.context());
        let events = &context.events;
        if events.health.is_connecting()
            && self.consumer.client().fetch_cluster_id(Duration::ZERO).is_some()
        {
            events.health.report_up();
        }
        for trouble in context.take_troubles() {
            if let Some(exit) = self.on_trouble(trouble) {
                return Some(exit);
            }
        }
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            let text = format!("the consumer failed: {}", events.redactor.redact(&reason));
            let error = KafkaError::new(ErrorKind::Fatal, text);
            // Somebody else uses the same `group_instance_id`: two would fence each other for ever.
            let kind = match code {
                Code::FencedInstanceId => SubscribeErrorKind::Conflict,
                _ => SubscribeErrorKind::Other,
            };
            return Some(Exit::Failed(kind, error));
        }
        if events.health.is_stranded() {
            let text = "the cluster said that it has no brokers, and the consumer forgot them all";
            return Some(Exit::Replace(KafkaError::new(ErrorKind::Connection, text)));
        }
        let waiting = matches!(*self.shared.opening.borrow(), Opening::Waiting);
        if waiting {
            if let Some(error) = events.health.hopeless() {
                self.report();
                let kind = match error.kind() {
                    ErrorKind::Authentication => SubscribeErrorKind::Forbidden,
                    _ => SubscribeErrorKind::Other,
                };
                return Some(Exit::Failed(kind, error));
            }
            if !events.health.is_connecting() {
                self.shared.opening.send_replace(Opening::Open);
            }
        }
        self.report();
        None
    }

    fn on_trouble(&mut self, trouble: Trouble) -> Option<Exit> {
        let Trouble { code, words } = trouble;
        let name = &*self.plan.request.name;
        if is_forbidden(code) {
            let error = KafkaError::of_code(code, words);
            return Some(Exit::Failed(SubscribeErrorKind::Forbidden, error));
        }
        match code {
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
                tracing::warn!(subscription = name, "{words}");
                self.absent = Some(words.into());
            }
            Code::InvalidSessionTimeout => {
                let text = format!(
                    "the group refuses session_timeout {:?}: it must be within the broker's \
                     group.min.session.timeout.ms and group.max.session.timeout.ms ({words})",
                    self.plan.subscription.session_timeout
                );
                return Some(Exit::Failed(SubscribeErrorKind::Invalid, KafkaError::config(text)));
            }
            Code::InvalidGroupId => {
                let error = KafkaError::config(format!("the group's name is refused: {words}"));
                return Some(Exit::Failed(SubscribeErrorKind::Invalid, error));
            }
            Code::InconsistentGroupProtocol => {
                self.wait_for_group(format!(
                    "the group refuses this member: the other members use other assignors than {} ({words})",
                    self.plan.assignors()
                ));
            }
            Code::GroupMaxSizeReached => {
                self.wait_for_group(format!(
                    "the group has as many members as it may have ({words})"
                ));
            }
            Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => {}
            _ => tracing::warn!(subscription = name, error = %code, "{words}"),
        }
        None
    }

    /// The group refuses this member as long as its other members stay as they are. Logged once.
    fn wait_for_group(&mut self, why: String) {
        if self.absent.as_deref() != Some(&*why) {
            tracing::warn!(
                subscription = &*self.plan.request.name,
                "{why}; it tries to join again"
            );
            self.absent = Some(why.into());
        }
    }

    /// Tells of the state.
    pub(super) fn report(&self) {
        let status = match self.consumer.context().events.health.state() {
            BrokerState::Ready if self.is_member => match self.full_bound() {
                None => SourceStatus::Consuming,
                Some(reason) => SourceStatus::Full { reason },
            },
            BrokerState::Ready => SourceStatus::Connecting { last_error: self.absent.clone() },
            BrokerState::Disconnected { last_error } => SourceStatus::Disconnected { last_error },
            BrokerState::Connecting { last_error } => SourceStatus::Connecting { last_error },
            _ => return,
        };
        self.plan.request.status.report(status);
    }

    /// The last commits, until shortly before `end`.
    fn close(&mut self, end: Instant) -> Ending {
        self.pass_gaps();
        let mut open: Vec<Arc<Partition>> = self.lanes.drain(..).map(Lane::end).collect();
        open.extend(self.rebalance_state.partitions());
        let close = |partition: Arc<Partition>| {
            let draft = partition.close()?;
            Some((partition, draft))
        };
        let drafts: Drafts = open.into_iter().filter_map(close).collect();
        self.shared.discard_revoked();
        if drafts.is_empty() {
            return Ending::Clean;
        }
        // What was asked for before is in these commits.
        self.clerk.cancel();
        let mut ticket = self.clerk.commit_last(drafts);
        let mut why: Arc<str> = "the broker did not answer in time".into();
        loop {
            self.serve_events();
            match self.clerk.take() {
                Some(Done::Committed { last: Some(of), result, failed, .. }) if of == ticket => {
                    let Err(error) = result else { return Ending::Clean };
                    self.refused(&failed, &error);
                    why = self.consumer.context().events.reason(error).into();
                    thread::park_timeout(TICK);
                    ticket = self.clerk.commit_last(renew(&failed));
                }
                Some(_) => {}
                None => thread::park_timeout(SHORT_TICK),
            }
            if Instant::now() >= end {
                return Ending::Uncommitted(why);
            }
        }
    }

    /// Ends the epochs without a commit.
    fn abandon(&mut self) {
        for partition in
            self.lanes.drain(..).map(Lane::end).chain(self.rebalance_state.partitions())
        {
            partition.close();
        }
        self.shared.discard_revoked();
    }
}
