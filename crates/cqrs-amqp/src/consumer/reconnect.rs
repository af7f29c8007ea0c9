//! Opens the sessions of a source, retried forever unless the server refuses; used by the supervisor.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::consume::support::error_chain;
use cqrs_core::consume::{
    SourceError, SourceStatus, StatusReporter, SubscribeError, SubscribeErrorKind,
};
use tokio::time::Instant;

use super::context::SourceContext;
use super::session::Session;
use crate::config::DeclareMode;
use crate::connect::Connector;
use crate::error::{AmqpError, ErrorKind};

/// A refusal that lasts this long is treated as permanent. A server refuses for a moment what it grants later
/// while it or its identity provider starts.
const PERMANENT_AFTER: Duration = Duration::from_secs(5);

/// Opens the sessions of one source and reports its status.
pub(super) struct Reconnector {
    pub(super) connector: Connector,
    pub(super) context: Arc<SourceContext>,
    status: StatusReporter,
    /// The error logged last: an outage is one log line, not one per attempt.
    logged: Mutex<String>,
}

/// An error that retrying cannot fix.
pub(super) struct Refusal {
    kind: SubscribeErrorKind,
    detail: String,
    cause: AmqpError,
}

impl Reconnector {
    pub(super) fn new(
        connector: Connector,
        context: Arc<SourceContext>,
        status: StatusReporter,
    ) -> Self {
        Self { connector, context, status, logged: Mutex::default() }
    }

    /// Opens a session; `lost` is the error that ended the last one, if any.
    ///
    /// # Errors
    /// A permanent refusal by the server. All other errors are retried.
    pub(super) async fn open(&self, lost: Option<&AmqpError>) -> Result<Session, Refusal> {
        let mut refused_since: Option<(SubscribeErrorKind, Instant)> = None;
        loop {
            let error = match Session::open(&self.connector, &self.context).await {
                Ok(session) => {
                    self.log_opened(lost.is_some());
                    self.status.report(SourceStatus::Consuming);
                    return Ok(session);
                }
                Err(error) => error,
            };
            self.report(lost.is_some(), &error);
            match self.refusal(&error, lost.is_some()) {
                None => refused_since = None,
                Some((kind, permanent_after)) => {
                    let since = match refused_since {
                        Some((same, since)) if same == kind => since,
                        _ => Instant::now(),
                    };
                    refused_since = Some((kind, since));
                    if since.elapsed() >= permanent_after {
                        return Err(self.refuse(kind, error));
                    }
                }
            }
        }
    }

    /// Reports and logs that there is no session.
    pub(super) fn report(&self, recovering: bool, error: &AmqpError) {
        let why = error_chain(error);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if *logged != why {
            tracing::warn!(subscription = %self.context.plan.name, error = %why, "not consuming");
            logged.clone_from(&why);
        }
        drop(logged);
        self.status.report(match recovering {
            true => SourceStatus::Disconnected { last_error: why.into() },
            false => SourceStatus::Connecting { last_error: Some(why.into()) },
        });
    }

    fn log_opened(&self, reconnected: bool) {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let (name, address) = (&self.context.plan.name, self.connector.address());
        match reconnected {
            true => tracing::info!(subscription = %name, %address, "consuming again"),
            false => tracing::info!(subscription = %name, %address, "consuming"),
        }
    }

    /// The kind of `error` if it is a refusal, and how long it has to last to be permanent.
    fn refusal(
        &self,
        error: &AmqpError,
        recovering: bool,
    ) -> Option<(SubscribeErrorKind, Duration)> {
        use SubscribeErrorKind::{Conflict, Forbidden, Invalid, NotFound, Unsupported};
        let at_once = if recovering { PERMANENT_AFTER } else { Duration::ZERO };
        let mode = self.context.plan.mode;
        let declared_elsewhere = matches!(mode, DeclareMode::Passive | DeclareMode::None);
        match (error.kind(), error.code()) {
            (ErrorKind::Authentication | ErrorKind::VirtualHost, _) => {
                Some((Forbidden, PERMANENT_AFTER))
            }
            (ErrorKind::Topology, Some(403)) => Some((Forbidden, at_once)),
            (ErrorKind::Topology, Some(406)) => Some((Conflict, at_once)),
            // A queue or exchange that we do not declare is missing. A later loss of it is retried.
            (ErrorKind::Topology, Some(404)) if !recovering && declared_elsewhere => {
                Some((NotFound, at_once))
            }
            (ErrorKind::Topology, Some(503 | 530)) => Some((Invalid, at_once)),
            (ErrorKind::Topology, Some(540)) => Some((Unsupported, at_once)),
            _ => None,
        }
    }

    fn refuse(&self, kind: SubscribeErrorKind, cause: AmqpError) -> Refusal {
        let plan = &self.context.plan;
        let queues: Vec<_> = plan
            .queues
            .iter()
            .map(|queue| format!("queue {:?} ({})", &*queue.name, queue.describe()))
            .collect();
        let (name, queues, address) = (&plan.name, queues.join(", "), self.connector.address());
        let (what, to_do) = match kind {
            SubscribeErrorKind::Conflict => (
                "a queue or exchange exists on the server with other properties",
                "ask for the same ones, take with_passive(true) or another name, or delete it once it is empty",
            ),
            SubscribeErrorKind::Forbidden => (
                "the server does not allow it",
                "check user, password and virtual host, and that the user may configure, read and \
                 write these queues and their exchange; with_passive(true) needs less",
            ),
            SubscribeErrorKind::NotFound => (
                "it does not exist, and is not declared by this subscription",
                "start the service that declares it first, or let this subscription declare it",
            ),
            _ => ("the server cannot do it", "check the options of the subscription"),
        };
        let detail = format!(
            "subscription {name:?} to {queues}, exchange {:?}, on {address}: {what}; {to_do}",
            plan.exchange.name
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
