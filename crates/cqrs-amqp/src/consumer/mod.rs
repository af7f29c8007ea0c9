//! The consumer: from a queue to the runtime and back; used by the broker value.
//!
//! ```text
//! connection ─ channel ─ session ─ supervisor ─ inbound ─ source ─ runtime ─ ack ────────── channel
//!                                      └───── redelivery ──────────── dropped delivery
//!                                                                retry copy, dead letter ─ copies ─ own connection
//! ```
//!
//! # Ownership
//! * A **[`Supervisor`]** is one task, and owns the source's connection. It recovers that forever (with the
//!   [`Reconnector`]), reports its state, and ends with the source: when that is closed or dropped.
//! * A **[`Session`](session::Session)** is an open channel and the consumers on it, which its
//!   [receiver](receiver::DeliveryReceiver) polls. A delivery can be settled on its own channel only. When a
//!   session ends, its [`ChannelEpoch`](channel_epoch::ChannelEpoch) is over first: its deliveries are revoked
//!   (`begin` is false, an ack fails), and those that were not handed out are skipped. The server redelivers
//!   all of them.
//! * The **[`AmqpSource`]** is the runtime's end. It takes deliveries out of [`Inbound`] and counts those in
//!   flight over all channels: a new channel is sent a full prefetch while deliveries of the last one still run.
//! * A **[delivery](settle::AmqpSettle)** holds its acker and the [message as sent](original::Original). Dropped
//!   unsettled it goes to the supervisor, which requeues it after a delay ([`redelivery`]: 0.1 s, growing to 5 s
//!   while nothing is acknowledged); after a stop, with the close.
//! * The **[`Copies`]** publish retry copies and dead letters of all sources on a connection of their own, up to
//!   16 at a time, each alone on its channel: a confirm, a return or a channel error concerns that message only.
//!
//! # In flight
//! At most the prefetch is in flight between the server and the runtime: the inbound queue is emptied when its
//! session ends. The runtime holds as much again, over all channels. An acknowledgement is recorded,
//! and the supervisor writes what was recorded since it ran last, many [with one frame](acks::Acks). Those that
//! the server did not read are lost with the connection, and their messages are redelivered.
//!
//! # Order
//! The order is that of the queue, as long as nothing is requeued. A requeued message (dropped, or lost with its
//! session) goes to the head of the queue: before the messages that were not delivered, after those that were
//! prefetched. Messages requeued together keep their order. After a stop nothing is requeued before the close,
//! which waits until no delivery is on its way and then requeues all at once, in order.
//!
//! # Crashes
//! A quorum queue counts the returns of a message by lost consumers. A message that was returned twice runs
//! alone, from a queue of its own: see [`quarantine`].
//!
//! # Cancel and panic
//! A dropped `subscribe` drops its session, which closes the channel and the connection. A dropped `ack` may
//! have acknowledged, and settles nothing else. A dropped copy may have been stored; its channel is closed,
//! so that no other confirm is taken for its own. If the supervisor panics, its connection is dropped, all its
//! deliveries are revoked, and the source ends with an error.

mod acks;
mod channel_epoch;
mod check;
mod consumers;
mod context;
mod copies;
mod copy_properties;
mod declare;
mod delivery_count;
mod in_flight;
mod inbound;
mod inbound_delivery;
mod original;
mod plan;
mod quarantine;
mod receiver;
mod reconnect;
mod redelivery;
mod session;
mod settle;
mod source;
mod stream_offsets;
mod supervisor;

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::{Source, SubscribeError, SubscribeErrorKind, SubscribeRequest};
use tokio::sync::mpsc;

use self::context::SourceContext;
use self::copies::Copies;
use self::inbound::Inbound;
use self::plan::Plan;
use self::quarantine::inspect;
use self::reconnect::Reconnector;
use self::source::AmqpSource;
use self::supervisor::Supervisor;
use crate::config::{AmqpConfig, DeclareMode};
use crate::connect::Connector;
use crate::error::AmqpError;

/// For the search of messages in the queues of a quarantine that is switched off.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(5);

/// Opens the subscriptions of a broker value.
pub(crate) struct Subscriber {
    config: AmqpConfig,
    copies: Arc<Copies>,
}

impl Subscriber {
    /// Connects nothing yet.
    pub(crate) fn new(config: &AmqpConfig) -> Result<Self, AmqpError> {
        Ok(Self { config: config.clone(), copies: Arc::new(Copies::new(config)?) })
    }

    pub(crate) fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        check::check(requests, &self.config)
    }

    /// Opens a subscription. Dropped, it leaves no consumer.
    pub(crate) async fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let plan = Plan::new(&request, &self.config)?;
        if let Some(problem) = check::check_one(&request, &plan).into_iter().next() {
            return Err(problem);
        }
        warn_of_delivery_limit(&plan);
        let connector = Connector::for_consuming(&self.config, &plan.name).map_err(|error| {
            let detail = format!("subscription {:?}: {error}", plan.name);
            SubscribeError::new(SubscribeErrorKind::Invalid, detail).with_source(error)
        })?;
        let context = Arc::new(SourceContext::new(plan, Arc::clone(&self.copies)));
        let reconnector = Reconnector::new(connector, Arc::clone(&context), request.status);
        let session = reconnector.open(None).await?;
        let searching = inspect::warn_of_leftovers(&session.pooled.connection, &context);
        let _only_a_warning = tokio::time::timeout(LEFTOVERS_LIMIT, searching).await;
        let inbound = Arc::new(Inbound::default());
        let (commands, receiver) = mpsc::unbounded_channel();
        let supervisor = Supervisor::new(reconnector, inbound::Sender::new(&inbound), receiver);
        tokio::spawn(supervisor.run(session));
        Ok(Box::new(AmqpSource::new(context, inbound, commands)))
    }
}

fn warn_of_delivery_limit(plan: &Plan) {
    if !matches!(plan.mode, DeclareMode::Declare | DeclareMode::PythonCompatible) {
        tracing::warn!(
            subscription = %plan.name,
            "the queue was declared elsewhere, and AMQP cannot read its delivery limit (20 by default \
             since RabbitMQ 4.0, after which the server drops a message): make sure that it is higher \
             than restarts, lost connections and attempts can add up to"
        );
    }
}
