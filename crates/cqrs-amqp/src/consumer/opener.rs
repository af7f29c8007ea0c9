use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::consume::{
    SourceError, SourceStatus, StatusReporter, SubscribeError, SubscribeErrorKind,
};
use tokio::time::Instant;

use super::context::Desk;
use super::line::Line;
use crate::connect::Connector;
use crate::{AmqpError, DeclareMode, ErrorKind};

/// How long the server may refuse something before that is taken for its last word. One that is starting,
/// or whose identity provider is, refuses what it grants a moment later.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Opens the lines of one source, for ever, and tells of it.
pub(super) struct Opener {
    pub(super) connector: Connector,
    pub(super) desk: Arc<Desk>,
    status: StatusReporter,
    /// What was last logged, so that an outage is one line and not one for each attempt.
    logged: Mutex<String>,
}

/// What does not mend itself.
pub(super) struct Refusal {
    kind: SubscribeErrorKind,
    detail: String,
    cause: AmqpError,
}

impl Opener {
    pub(super) fn new(connector: Connector, desk: Arc<Desk>, status: StatusReporter) -> Self {
        Self { connector, desk, status, logged: Mutex::default() }
    }

    /// Opens a line; `lost` says why the last one ended, when there was one.
    ///
    /// # Errors
    /// What the server refuses and will refuse again. All else is tried again.
    pub(super) async fn open(&self, lost: Option<&AmqpError>) -> Result<Line, Refusal> {
        let mut refused_since: Option<(SubscribeErrorKind, Instant)> = None;
        loop {
            let error = match Line::open(&self.connector, &self.desk).await {
                Ok(line) => {
                    self.log_opened(lost.is_some());
                    self.status.report(SourceStatus::Consuming);
                    return Ok(line);
                }
                Err(error) => error,
            };
            self.report(lost.is_some(), &error);
            match self.refusal(&error, lost.is_some()) {
                None => refused_since = None,
                Some((kind, patience)) => {
                    let since = match refused_since {
                        Some((same, since)) if same == kind => since,
                        _ => Instant::now(),
                    };
                    refused_since = Some((kind, since));
                    if since.elapsed() >= patience {
                        return Err(self.refuse(kind, error));
                    }
                }
            }
        }
    }

    /// Tells that there is no line, and why.
    pub(super) fn report(&self, recovering: bool, error: &AmqpError) {
        let why = error.chain();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if *logged != why {
            tracing::warn!(subscription = %self.desk.plan.name, error = %why, "not consuming");
            logged.clone_from(&why);
        }
        drop(logged);
        self.status.report(match recovering {
            true => SourceStatus::Disconnected { last_error: why.into() },
            false => SourceStatus::Connecting { last_error: Some(why.into()) },
        });
    }

    fn log_opened(&self, again: bool) {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let (name, address) = (&self.desk.plan.name, self.connector.address());
        match again {
            true => tracing::info!(subscription = %name, %address, "consuming again"),
            false => tracing::info!(subscription = %name, %address, "consuming"),
        }
    }

    /// Whether `error` is a refusal, and how long it has to last to be believed.
    fn refusal(
        &self,
        error: &AmqpError,
        recovering: bool,
    ) -> Option<(SubscribeErrorKind, Duration)> {
        use SubscribeErrorKind::{Conflict, Forbidden, Invalid, NotFound, Unsupported};
        let at_once = if recovering { LAST_WORD } else { Duration::ZERO };
        match (error.kind(), error.reply_code()) {
            (ErrorKind::Authentication | ErrorKind::VirtualHost, _) => Some((Forbidden, LAST_WORD)),
            (ErrorKind::Topology, Some(403)) => Some((Forbidden, at_once)),
            (ErrorKind::Topology, Some(406)) => Some((Conflict, at_once)),
            // Of a queue or exchange that is only looked for. Later on it is waited for.
            (ErrorKind::Topology, Some(404))
                if self.desk.plan.mode == DeclareMode::Passive && !recovering =>
            {
                Some((NotFound, at_once))
            }
            (ErrorKind::Topology, Some(404))
                if self.desk.plan.mode == DeclareMode::None && !recovering =>
            {
                Some((NotFound, at_once))
            }
            (ErrorKind::Topology, Some(503 | 530)) => Some((Invalid, at_once)),
            (ErrorKind::Topology, Some(540)) => Some((Unsupported, at_once)),
            _ => None,
        }
    }

    fn refuse(&self, kind: SubscribeErrorKind, cause: AmqpError) -> Refusal {
        let plan = &self.desk.plan;
        let queues: Vec<_> = plan
            .queues
            .iter()
            .map(|queue| format!("queue {:?} ({})", &*queue.name, queue.describe()))
            .collect();
        let (name, queues, address) = (&plan.name, queues.join(", "), self.connector.address());
        let (what, to_do) = match kind {
            SubscribeErrorKind::Conflict => (
                "something stands on the server with other properties than asked for",
                "ask for the same ones, take passive() or another name, or delete what stands there \
                 once it is empty",
            ),
            SubscribeErrorKind::Forbidden => (
                "the server does not allow it",
                "check user, password and virtual host, and that the user may configure, read and \
                 write these queues and their exchange; with passive() less is needed",
            ),
            SubscribeErrorKind::NotFound => (
                "it does not exist, and was only looked for",
                "start what declares it first, or let this subscription declare it",
            ),
            _ => ("the server cannot do it", "check the options of the subscription"),
        };
        let detail = format!(
            "subscription {name:?} to {queues}, exchange {:?}, on {address}: {what}: {}; {to_do}",
            plan.exchange.name,
            cause.chain()
        );
        Refusal { kind, detail, cause }
    }
}

impl From<Refusal> for SubscribeError {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.kind, refusal.detail).with_source(refusal.cause)
    }
}

impl From<Refusal> for SourceError {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.detail).with_source(refusal.cause)
    }
}
