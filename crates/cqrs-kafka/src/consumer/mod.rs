//! The consuming half: from librdkafka's queues to deliveries, and back as commits.
//!
//! # Who does what
//! * The **poll thread** ([`driver`], [`session`]) owns the client. It polls for ever, whatever handlers
//!   do; takes records out of the partitions' queues ([`lane`]) while there is room; answers the group
//!   ([`rebalance`]); decides what is committed, and when. It never waits for the broker.
//! * The **clerk** ([`clerk`]) is the thread that waits for the group coordinator: commits whose result
//!   counts, and look-ups of committed offsets, one after the other.
//! * The **source** ([`source`]) is the async side. It owns what was fetched and not handed out, and what
//!   was dropped and waits to be handed out again ([`again`]).
//! * A **settlement** ([`settle`]) owns the record of a delivery that is out.
//!
//! They share one [`shared::Shared`], and for each assignment of a partition one
//! [`partition::Partition`]. Locks are held for a few moves each, never two at once, never while a
//! callback of librdkafka or a waker runs.
//!
//! # What holds
//! * A fetched record is counted as unsettled from the moment it leaves librdkafka's queue until it is
//!   acked, or its partition is not ours any more. While there is no room, nothing is taken out of the
//!   queues; librdkafka stops fetching a partition whose queue is full. (So a partition is paused by not
//!   looking: nothing that was fetched is thrown away.)
//! * A record is in its partition's [`ledger`](ledger::Ledger) before it is handed out. The ledger's
//!   lowest unfinished offset is all that is ever committed; what is finished behind it stands in the
//!   [`commit_metadata`] and is not handed out again by whoever gets the partition next.
//! * Nothing is handed out before the takeover commit: it gives a new group its place ([`places`]) and says that
//!   the partition has an owner. Whoever finds that the last owner had no last commit counts an unclean end;
//!   after two in a row the suspects run alone ([`quarantine`]).
//! * A partition that is assigned again is a new value with a new ledger. What is left of an earlier
//!   assignment (a late ack) reaches only the old, closed ledger, and fails.
//! * A revoke closes the gate first (no handler starts), waits for those that run (`revoke_drain`), then
//!   closes the ledger, commits it and lets the partition go. What ran longer comes again with the new
//!   owner; its late ack fails. Held deliveries do not run. A partition that is lost is let go at once,
//!   without a commit.
//! * A delivery that is dropped (a panic, a cancel) is handed out again, after a wait, before what comes
//!   later of its key and was not handed out. What was handed out already is not called back: who drops
//!   one delivery of a key drops those behind it, too, and gets them again in order.
//! * A panic of the poll thread fails the source. A dropped source commits and leaves the group in the
//!   background; nothing waits for it.

mod again;
mod bound;
mod check;
mod clerk;
mod commit_metadata;
mod context;
mod copies;
mod create_topics;
mod driver;
mod lane;
mod ledger;
mod partition;
mod places;
mod plan;
mod quarantine;
mod rebalance;
mod rebalance_state;
mod record;
mod refusals;
mod session;
mod settle;
mod shared;
mod source;

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::{
    Source, SourceStatus, SubscribeError, SubscribeErrorKind, SubscribeRequest,
};

use self::copies::Copies;
pub(crate) use self::copies::CopyProducers;
use self::plan::Plan;
use self::shared::{Opening, Shared};
use self::source::KafkaSource;
use crate::config::KafkaConfig;
use crate::error::ErrorKind;

/// Between two attempts at making the retry topics.
const AGAIN: Duration = Duration::from_secs(1);

/// What is wrong with `requests`.
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

/// Opens a subscription: resolves once the cluster answered.
pub(crate) async fn subscribe(
    config: &KafkaConfig,
    copies: &Arc<CopyProducers>,
    request: SubscribeRequest,
) -> Result<Box<dyn Source>, SubscribeError> {
    let plan = Arc::new(Plan::new(config, request)?);
    let copies = Copies::new(Arc::clone(copies), plan.subscription.create_topics);
    make_retry_topics(&plan, &copies).await?;
    let bytes = plan.subscription.max_unsettled_bytes;
    let shared = Arc::new(Shared::new(plan.cap(), bytes, Arc::new(copies)));
    driver::start(&plan, &shared)?;
    // Dropped with this future, it ends the thread.
    let source = Box::new(KafkaSource::new(plan, Arc::clone(&shared)));
    let mut opening = shared.opening.subscribe();
    // The sender lives as long as the source.
    let _ = opening.wait_for(|opening| !matches!(opening, Opening::Waiting)).await;
    drop(opening);
    let mut failure = None;
    shared.opening.send_if_modified(|opening| {
        if let Opening::Failed(error) = opening {
            failure = error.take();
        }
        false
    });
    match failure {
        None => Ok(source),
        Some(error) => Err(error),
    }
}

/// The retry topics must be there to be subscribed to. Waits for the cluster as long as it takes.
async fn make_retry_topics(plan: &Plan, copies: &Copies) -> Result<(), SubscribeError> {
    let topics = plan.retry_topics();
    if topics.is_empty() {
        return Ok(());
    }
    loop {
        let Err(error) = copies.make_all(&topics).await else { return Ok(()) };
        let text = format!(
            "subscription {}: its retry topics could not be made: {error}",
            plan.request.name
        );
        match error.kind() {
            // They may exist, made by somebody who may; if not, the status says which is missing.
            ErrorKind::Authorization => {
                tracing::warn!("{text}");
                return Ok(());
            }
            ErrorKind::Configuration => {
                return Err(
                    SubscribeError::new(SubscribeErrorKind::Invalid, text).with_source(error)
                );
            }
            _ => {}
        }
        tracing::warn!("{text}; trying again");
        let last_error = Some(text.into());
        plan.request.status.report(SourceStatus::Connecting { last_error });
        tokio::time::sleep(AGAIN).await;
    }
}
