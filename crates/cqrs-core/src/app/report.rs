//! The report of an [`App`](super::App) that ended, and the error of a part that failed.

use std::error::Error;
use std::sync::Arc;

use tokio::task::JoinError;

use crate::service::{ServiceError, ServiceReport};

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// The report of an app that ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppReport {
    /// The servers that did not end in time and were cancelled.
    pub cancelled_servers: Vec<Arc<str>>,
    /// The reports of the services, in the order they were added. That of a service that did not end, although
    /// it was cancelled, is empty.
    pub services: Vec<ServiceReport>,
    /// Sends, commits and rollbacks of mediators that still ran at the deadline.
    pub unfinished: usize,
    /// Messages that the brokers had not confirmed at the deadline, and unconfirmed events of dropped sends.
    pub undelivered: usize,
}

impl AppReport {
    /// `true` if every part ended by itself, and nothing was cancelled, left unfinished or undelivered.
    pub fn is_clean(&self) -> bool {
        let is_clean = |service: &ServiceReport| {
            !service.subscriptions.is_empty()
                && service.subscriptions.iter().all(|one| one.cancelled == 0 && one.error.is_none())
        };
        self.cancelled_servers.is_empty()
            && self.services.iter().all(is_clean)
            && self.unfinished == 0
            && self.undelivered == 0
    }
}

/// The error of an app of which a part failed. The other parts were stopped in order.
#[derive(thiserror::Error)]
#[error("{part} failed and stopped the app")]
#[non_exhaustive]
pub struct AppError {
    /// The part that failed first: `server http`, or `service 1` in the order they were added.
    pub part: String,
    /// Its error.
    pub source: BoxError,
    /// The report of all parts.
    pub report: AppReport,
}

crate::error_debug!(AppError, part, report);

/// What is known of the parts while they end.
pub(super) struct Outcomes {
    pub(super) report: AppReport,
    pub(super) failed: Option<(String, BoxError)>,
    servers: Vec<Arc<str>>,
}

impl Outcomes {
    pub(super) fn new<'n>(servers: impl Iterator<Item = &'n Arc<str>>, services: usize) -> Self {
        let servers: Vec<_> = servers.cloned().collect();
        let report = AppReport {
            cancelled_servers: servers.clone(),
            services: vec![ServiceReport::default(); services],
            ..AppReport::default()
        };
        Self { report, failed: None, servers }
    }

    /// Notes the end of a server. A [`JoinError`] cannot be: panics are caught in the task.
    pub(super) fn server(&mut self, ended: Result<(usize, Result<(), BoxError>), JoinError>) {
        let Ok((index, ended)) = ended else { return };
        let name = &self.servers[index];
        if let Some(at) = self.report.cancelled_servers.iter().position(|one| one == name) {
            self.report.cancelled_servers.remove(at);
        }
        if let Err(error) = ended {
            self.fail(format!("server {name}"), error);
        }
    }

    /// Notes the end of a service.
    pub(super) fn service(
        &mut self,
        ended: Result<(usize, Result<ServiceReport, ServiceError>), JoinError>,
    ) {
        let Ok((index, ended)) = ended else { return };
        self.report.services[index] = match ended {
            Ok(report) => report,
            Err(error) => {
                let report = error.report.clone();
                self.fail(format!("service {}", index + 1), error.into());
                report
            }
        };
    }

    fn fail(&mut self, part: String, error: BoxError) {
        tracing::error!(part, error = &*error as &(dyn Error + 'static), "failed: the app stops");
        self.failed.get_or_insert((part, error));
    }
}
