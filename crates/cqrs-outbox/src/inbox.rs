//! The inbox: marks of the messages whose handling is committed, and their retention.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cqrs_core::scope;
use uuid::Uuid;

use crate::database::OutboxDatabase;
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::unit::SqlUnitOfWork;

/// The number of marks that one statement deletes.
const PURGE_BATCH: u32 = 1_000;

/// The inbox in the database of an [`Outbox`], for [`Subscription::inbox`](cqrs_core::Subscription::inbox).
/// Cloning is cheap.
///
/// A mark is kept for the retention, 7 days by default: a duplicate that arrives later is handled again.
/// Older marks are deleted in the background, at most once an hour, by the processes that consume.
pub struct Inbox<DB: OutboxDatabase> {
    outbox: Outbox<DB>,
    retention: Duration,
    /// The time of the last purge that this process began.
    purged: Arc<Mutex<Option<Instant>>>,
}

impl<DB: OutboxDatabase> Outbox<DB> {
    /// The inbox in the same database.
    pub fn inbox(&self) -> Inbox<DB> {
        let retention = Duration::from_secs(7 * 24 * 60 * 60);
        Inbox { outbox: self.clone(), retention, purged: Arc::default() }
    }
}

impl<DB: OutboxDatabase> Inbox<DB> {
    /// The time between two purges.
    const PURGE_PERIOD: Duration = Duration::from_secs(60 * 60);

    /// Sets the time for which a mark is kept: longer than a broker may deliver a message again.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Deletes the marks older than the retention, 1,000 in each statement. Returns their number.
    ///
    /// # Errors
    /// If the database is away or refuses a statement; the marks of earlier statements are deleted then.
    ///
    /// # Cancel safety
    /// Dropped, the marks of earlier statements are deleted.
    pub async fn purge(&self) -> Result<u64, OutboxError> {
        let age = i64::try_from(self.retention.as_micros()).unwrap_or(i64::MAX);
        let mut purged = 0;
        loop {
            let (pool, tables) = (self.outbox.pool(), self.outbox.tables());
            let deleted = DB::purge(pool, tables, age, PURGE_BATCH.into())
                .await
                .map_err(|error| OutboxError::database("purging the inbox", error))?;
            purged += deleted;
            if deleted < PURGE_BATCH.into() {
                return Ok(purged);
            }
        }
    }

    /// Purges in a task of its own, if the last purge is long ago.
    fn purge_in_background(&self) {
        {
            let mut purged = self.purged.lock().unwrap_or_else(PoisonError::into_inner);
            if purged.is_some_and(|last| last.elapsed() < Self::PURGE_PERIOD) {
                return;
            }
            *purged = Some(Instant::now());
        }
        let inbox = self.clone();
        tokio::spawn(async move {
            match inbox.purge().await {
                Ok(0) => {}
                Ok(marks) => tracing::info!(marks, "purged the inbox"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn Error, "the inbox was not purged");
                }
            }
        });
    }
}

impl<DB: OutboxDatabase> scope::Inbox for Inbox<DB> {
    type Unit = SqlUnitOfWork<DB>;

    async fn mark(
        &self,
        unit: &mut Self::Unit,
        consumer: &str,
        message_id: Uuid,
    ) -> Result<bool, Box<dyn Error + Send + Sync>> {
        let marked = DB::mark(unit.connection(), self.outbox.tables(), consumer, message_id).await;
        let is_new = marked
            .map_err(|error| OutboxError::database("marking a message in the inbox", error))?;
        self.purge_in_background();
        Ok(is_new)
    }
}

/// Not derived, which would ask for a `DB` that is `Clone`.
impl<DB: OutboxDatabase> Clone for Inbox<DB> {
    fn clone(&self) -> Self {
        let Self { outbox, retention, purged } = self;
        Self { outbox: outbox.clone(), retention: *retention, purged: Arc::clone(purged) }
    }
}

impl<DB: OutboxDatabase> fmt::Debug for Inbox<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("outbox", &self.outbox)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}
