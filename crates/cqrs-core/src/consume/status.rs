//! The status of a source, reported by broker crates and read by the health of a service.

use std::sync::Arc;

use tokio::sync::watch;

/// The state of a source's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceStatus {
    /// It does not consume yet: connecting, declaring, or waiting for partitions.
    Connecting {
        /// The error of the last attempt, if there was one.
        last_error: Option<Arc<str>>,
    },
    /// It consumes. So does a Kafka member without a partition: other members have them.
    Consuming,
    /// It consumes, but a bound on unsettled messages is full: no more messages are fetched under that
    /// bound.
    Full {
        /// The bound, its partition or queue, and the message it waits for.
        reason: Arc<str>,
    },
    /// It lost its connection, its consumer or its queue, and reconnects.
    Disconnected {
        /// The error.
        last_error: Arc<str>,
    },
}

/// Reports the status of a source. Cloning is cheap; clones report to the same receiver.
#[derive(Debug, Clone)]
pub struct StatusReporter(Arc<watch::Sender<SourceStatus>>);

impl StatusReporter {
    /// A reporter, and the receiver of its reports.
    pub fn new() -> (Self, watch::Receiver<SourceStatus>) {
        let (sender, receiver) = watch::channel(SourceStatus::Connecting { last_error: None });
        (Self(Arc::new(sender)), receiver)
    }

    /// Reports `status`. An unchanged status wakes no receiver.
    pub fn report(&self, status: SourceStatus) {
        self.0.send_if_modified(|known| {
            let changed = *known != status;
            if changed {
                *known = status;
            }
            changed
        });
    }
}
