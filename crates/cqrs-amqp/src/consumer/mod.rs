//! The consumer: from a queue to the runtime's hands and back.
//!
//! ```text
//! connection ─ channel ─ pump ─ letters ─ source ─ runtime ─ ack ──────────────── channel
//!                          └──── returns ──────────── dropped delivery
//!                                                      retry copy, dead letter ── copies ─ own connection
//! ```

mod arrived;
mod careful;
mod check;
mod consumers;
mod copies;
mod copy;
mod declare;
mod generation;
mod incoming;
mod line;
mod opener;
mod options;
mod outs;
mod places;
mod plan;
mod pump;
mod returns;
mod settle;
mod source;
mod suspicion;

use std::sync::Arc;

use cqrs_core::consume::{Source, SubscribeError, SubscribeErrorKind, SubscribeRequest};
use tokio::sync::mpsc;

use self::copies::Copies;
use self::opener::Opener;
use self::places::Places;
use self::plan::Plan;
use self::pump::Pump;
use self::settle::Desk;
use self::source::AmqpSource;
use self::suspicion::Suspicion;
use crate::connect::Connector;
use crate::{AmqpConfig, AmqpError, DeclareMode};

pub use options::{AmqpSubscription, QueueKind, StreamOffset};

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
        let (places, suspicion) = (Places::new(&plan), Suspicion::new(&plan));
        let copies = Arc::clone(&self.copies);
        let desk = Arc::new(Desk { plan, places, suspicion, copies });
        let opener = Opener::new(connector, Arc::clone(&desk), request.status);
        let line = opener.open(None).await?;
        let (letters, received) = mpsc::unbounded_channel();
        let (commands, commanded) = mpsc::unbounded_channel();
        tokio::spawn(Pump::new(opener, letters, commanded).run(line));
        Ok(Box::new(AmqpSource::new(desk, received, commands)))
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
