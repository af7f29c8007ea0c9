use std::sync::Arc;

use tokio::sync::watch;

/// What a source knows of its connection now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceStatus {
    /// It does not consume yet: connecting, declaring, or waiting for partitions.
    Connecting {
        /// Why the last attempt failed, when there was one.
        last_error: Option<Arc<str>>,
    },
    /// It consumes. A Kafka member without a partition does too: others have them.
    Consuming,
    /// It consumes, but a bound on unsettled messages is full: no more is fetched of what the bound covers.
    Full {
        /// Which bound, of which partition or queue, and what it waits for.
        reason: Arc<str>,
    },
    /// It lost its connection, its consumer or its queue, and makes it again.
    Disconnected {
        /// Why.
        last_error: Arc<str>,
    },
}

/// Through which a source tells of its state. Cloning is cheap; clones tell the same listener.
#[derive(Debug, Clone)]
pub struct StatusReporter(Arc<watch::Sender<SourceStatus>>);

impl StatusReporter {
    /// A reporter, and where its reports are seen.
    pub fn new() -> (Self, watch::Receiver<SourceStatus>) {
        let (sender, receiver) = watch::channel(SourceStatus::Connecting { last_error: None });
        (Self(Arc::new(sender)), receiver)
    }

    /// Reports `status`. Reporting the same again costs little and wakes nobody.
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
