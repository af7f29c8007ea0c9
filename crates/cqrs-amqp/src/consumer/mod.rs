//! The consumer: from a queue to the runtime's hands and back.
//!
//! ```text
//! connection ─ channel ─ line ─ pump ─ inbound ─ source ─ runtime ─ ack ────────── channel
//!                                └──── returns ──────────── dropped delivery
//!                                                           retry copy, dead letter ─ copies ─ own connection
//! ```
//!
//! # Who owns what
//! * A **[`Pump`]** is one task, and owns the source's connection. It recovers it for ever,
//!   tells of its state, and hands on what comes. It ends with the source: when that is closed, or dropped.
//! * A **[`Line`](line::Line)** is a channel and the consumers on it: one *generation*. What was delivered
//!   on it can be settled on it alone. When it ends, for whatever reason, its
//!   [`Generation`](generation::Generation) is over first: its deliveries say so (`begin` is false, an ack
//!   fails), and those that were not handed out are skipped. The server hands all of them out again.
//! * The **[`AmqpSource`]** is the runtime's end. It counts what is out, over all
//!   generations: a new channel is sent a full prefetch while deliveries of the last one still run.
//! * A **delivery** holds its acker and the message as it came. Dropped unsettled it goes to the pump,
//!   which gives it back after a pause (0.1 s, growing to 5 s while nothing is acknowledged); after a stop,
//!   with the close.
//! * The **[`Copies`]** publish retry copies and dead letters of all sources on a connection
//!   of their own, up to 16 at a time, each alone on its channel: a confirm, a return or a channel error is
//!   about that message and no other.
//!
//! # What is in flight
//! At most the prefetch, between the server and the runtime: the queue between pump and source is emptied
//! when its line ends. The runtime holds as much again, over all generations. Acknowledgements are written by the runtime's tasks through lapin, one each; a
//! written one that the server did not read is lost with the connection, and its message comes again.
//!
//! # Order
//! A queue's order, as long as nothing is given back. What is given back (dropped, or lost with its line)
//! goes to the head of the queue and comes before what was not handed out yet, but after what was sent
//! ahead; among themselves those given back together keep their order. From a stop on nothing of what
//! was consumed goes back before the close, which waits until nothing is on its way here and then gives back
//! all at once, in order.
//!
//! # Crashes
//! A quorum queue counts how often a message came back from a consumer that went away. A message that came
//! back twice runs alone, from a queue of its own: see [`quarantine`].
//!
//! # What a cancel or a panic leaves behind
//! A dropped `subscribe` drops its line, which closes the channel and the connection. A dropped `ack` may
//! have acknowledged, and settles nothing else. A dropped copy may have been stored; its channel is closed,
//! so that nothing is mistaken for its confirm. Should the pump panic, its connection is dropped, all its
//! deliveries are over, and the source ends with an error.

mod arrived;
mod check;
mod consumers;
mod context;
mod copies;
mod copy;
mod declare;
mod delivery_count;
mod generation;
mod in_flight;
mod inbound;
mod incoming;
mod line;
mod opener;
mod options;
mod places;
mod plan;
mod pump;
mod quarantine;
mod returns;
mod settle;
mod source;

use std::sync::Arc;

use cqrs_core::consume::{Source, SubscribeError, SubscribeErrorKind, SubscribeRequest};
use tokio::sync::mpsc;

use self::context::{Desk, Logs};
use self::copies::Copies;
use self::in_flight::InFlight;
use self::inbound::Inbound;
use self::opener::Opener;
use self::places::Places;
use self::plan::Plan;
use self::pump::Pump;
use self::quarantine::look;
use self::quarantine::state::Quarantine;
use self::source::AmqpSource;
use crate::connect::Connector;
use crate::{AmqpConfig, AmqpError, DeclareMode};

pub use options::{AmqpSubscription, QueueKind, StreamOffset};

/// For the look at queues of a quarantine that is switched off.
const STRANDED_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// What a broker value needs to open subscriptions.
pub(crate) struct Consuming {
    config: AmqpConfig,
    copies: Arc<Copies>,
}

impl Consuming {
    /// Connects nothing yet.
    pub(crate) fn new(config: &AmqpConfig) -> Result<Self, AmqpError> {
        Ok(Self { config: config.clone(), copies: Arc::new(Copies::new(config)?) })
    }

    pub(crate) fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        check::check(requests, &self.config)
    }

    /// Opens a subscription. Dropped, it leaves nothing that consumes.
    pub(crate) async fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let plan = Plan::new(&request, &self.config)?;
        if let Some(problem) = check::alone(&request, &plan).into_iter().next() {
            return Err(problem);
        }
        warn(&plan);
        let connector = Connector::for_consuming(&self.config, &plan.name).map_err(|error| {
            let detail = format!("subscription {:?}: {error}", plan.name);
            SubscribeError::new(SubscribeErrorKind::Invalid, detail).with_source(error)
        })?;
        let (places, quarantine) = (Places::new(&plan), Quarantine::default());
        let copies = Arc::clone(&self.copies);
        let (handed_on, running) = (InFlight::new(), InFlight::new());
        let logs = Logs::default();
        let desk = Arc::new(Desk { plan, places, quarantine, handed_on, running, copies, logs });
        let opener = Opener::new(connector, Arc::clone(&desk), request.status);
        let line = opener.open(None).await?;
        let looking = look::warn_of_stranded(&line.link.connection, &desk);
        let _only_a_warning = tokio::time::timeout(STRANDED_LIMIT, looking).await;
        let inbound = Arc::new(Inbound::default());
        let (commands, commanded) = mpsc::unbounded_channel();
        tokio::spawn(Pump::new(opener, inbound::Sender::new(&inbound), commanded).run(line));
        Ok(Box::new(AmqpSource::new(desk, inbound, commands)))
    }
}

fn warn(plan: &Plan) {
    if !matches!(plan.mode, DeclareMode::Declare | DeclareMode::PythonCompatible) {
        tracing::warn!(
            subscription = %plan.name,
            "the queue was declared elsewhere, and AMQP cannot read its delivery limit (20 by default \
             since RabbitMQ 4.0, after which the server drops a message): make sure that it is higher \
             than restarts, lost connections and attempts can add up to"
        );
    }
}
