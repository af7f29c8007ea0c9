//! The consuming half: fetched records go from librdkafka's queues to the runtime as deliveries, and back as commits.
//!
//! # Threads and tasks
//! * The **poll thread** owns the client. The [`supervisor`] runs one [`session`] after the other. A session polls
//!   continuously, however long handlers run; takes records out of the [`partition_queue`]s while there is room;
//!   answers the group ([`rebalance`], [`membership`]); decides which offsets are committed, and when
//!   ([`commit_schedule`]). It never waits for the broker.
//! * The **committer** ([`committer`]) is the thread for blocking calls to the group coordinator: commits whose result
//!   matters, and look-ups of committed offsets ([`start_offsets`]), one after the other.
//! * The **source** ([`source`]) is the async side. It owns fetched records that are not delivered yet, and dropped
//!   deliveries until their [`redelivery`].
//! * A **settlement** ([`settle`]) owns the record of one delivery. It writes retry copies and dead letters
//!   ([`copies`]).
//!
//! They share one [`subscription_state`], and one [`partition`] for each assignment of a partition. Locks are held
//! briefly, never two at once, and never while a callback of librdkafka or a waker runs.
//!
//! # Invariants
//! * A fetched record is [`in_flight`] from the moment it leaves librdkafka's queue until it is acked or its
//!   partition is revoked. While there is no room, no queue is polled, and librdkafka stops fetching a partition
//!   whose queue is full. So a partition is paused without discarding a fetched record.
//! * A record is in its partition's [`offset_tracker`] before it is delivered. Only the tracker's lowest unfinished
//!   offset is committed. The records finished behind it are in the [`commit_metadata`], and the partition's next
//!   owner does not deliver them again.
//! * Nothing is delivered before the takeover commit. It gives a new group a committed offset, and records that the
//!   partition has an owner. A consumer that finds no last commit of the previous owner counts an unclean end; after
//!   two in a row the records that may have caused it run alone ([`quarantine`]).
//! * A partition that is assigned again is a new value with a new tracker. A late ack of an earlier assignment reaches
//!   only the old, closed tracker, and fails.
//! * A revoke first keeps handlers from starting, waits for the running ones (`revoke_drain`), then closes the
//!   tracker, commits it and answers the group. A record whose handler runs longer is redelivered to the new owner,
//!   and its late ack fails. Held deliveries do not count as running. A partition that is lost is closed at once,
//!   without a commit.
//! * A dropped delivery (after a panic or a cancel) is redelivered after a wait, before later records of its key that
//!   were not delivered yet. Delivered records are not called back: a runtime that drops one delivery of a key drops
//!   those behind it too, and gets them again in order.
//! * A panic of the poll thread fails the source. A dropped source commits and leaves the group in the background.

mod check;
mod commit_metadata;
mod commit_schedule;
mod committer;
mod context;
mod copier;
mod copies;
mod create_topics;
mod in_flight;
mod membership;
mod offset_tracker;
mod partition;
mod partition_queue;
mod plan;
mod poller;
mod process;
mod quarantine;
mod rebalance;
mod rebalance_state;
mod record;
mod redelivery;
mod refusals;
mod retry_headers;
mod session;
mod settle;
mod source;
mod start_offsets;
mod subscription_state;
mod supervisor;

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::{
    Source, SourceStatus, SubscribeError, SubscribeErrorKind, SubscribeRequest,
};

use self::copies::Copies;
pub(crate) use self::copies::CopyProducers;
use self::plan::Plan;
use self::source::KafkaSource;
use self::subscription_state::{OpenState, SubscriptionState};
use crate::config::KafkaConfig;
use crate::error::ErrorKind;

/// The pause between two attempts to create the retry topics.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The faults of `requests`.
pub(crate) fn check(config: &KafkaConfig, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
    let mut faults = check::check(requests);
    for request in requests {
        let options = request.options.get().cloned().unwrap_or_default();
        if let Err(error) = config.to_consumer_config(request, &options) {
            let text = format!("subscription {}: {error}", request.name);
            faults.push(SubscribeError::new(SubscribeErrorKind::Invalid, text).with_source(error));
        }
    }
    faults
}

/// Opens a subscription. Resolves once the cluster answered.
pub(crate) async fn subscribe(
    config: &KafkaConfig,
    producers: &Arc<CopyProducers>,
    request: SubscribeRequest,
) -> Result<Box<dyn Source>, SubscribeError> {
    let plan = Arc::new(Plan::new(config, request)?);
    let copies = Copies::new(Arc::clone(producers), plan.subscription.create_topics);
    create_retry_topics(&plan, &copies).await?;
    let state = Arc::new(SubscriptionState::new(plan, copies));
    supervisor::start(&state)?;
    // If this future is dropped, so is the source, which ends the thread.
    let source = Box::new(KafkaSource::new(Arc::clone(&state)));
    let mut opening = state.opening.subscribe();
    // The sender lives as long as the source.
    let _ = opening.wait_for(|opening| !matches!(opening, OpenState::Waiting)).await;
    drop(opening);
    let mut failure = None;
    state.opening.send_if_modified(|opening| {
        if let OpenState::Failed(error) = opening {
            failure = error.take();
        }
        false
    });
    match failure {
        None => Ok(source),
        Some(error) => Err(error),
    }
}

/// Creates the retry topics, which must exist to be subscribed to. Waits for the cluster without a limit.
async fn create_retry_topics(plan: &Plan, copies: &Copies) -> Result<(), SubscribeError> {
    let topics = plan.retry_topics();
    if topics.is_empty() {
        return Ok(());
    }
    loop {
        let Err(error) = copies.create_all(&topics).await else { return Ok(()) };
        let text = format!(
            "subscription {}: its retry topics could not be created: {error}",
            plan.request.name
        );
        match error.kind() {
            // Another principal may have created them. If not, the status names the missing one.
            ErrorKind::Authorization => {
                tracing::warn!("{text}");
                return Ok(());
            }
            ErrorKind::Config => {
                return Err(
                    SubscribeError::new(SubscribeErrorKind::Invalid, text).with_source(error)
                );
            }
            _ => {}
        }
        tracing::warn!("{text}; trying again");
        let last_error = Some(text.into());
        plan.request.status.report(SourceStatus::Connecting { last_error });
        tokio::time::sleep(RETRY_AFTER).await;
    }
}
