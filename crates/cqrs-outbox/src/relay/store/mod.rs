//! The statements that a relay needs, with one implementation per database.

#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(super) mod connections;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod session;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Message;
use tokio::sync::Notify;
use uuid::Uuid;

use super::effects::{
    Delete, LaneEpoch, LaneRange, LaneRead, LateRow, Load, Move, OrderKey, ReadAnswer, RowId,
};
use super::lane::{Entry, ParkedEntry};
use super::operations::Operations;
use super::outage::cut;
use crate::error::OutboxError;
use crate::outbox::Outbox;

/// A relay that ended without a word while it owned no lane is forgotten after so many leases.
pub(super) const FORGOTTEN_AFTER: u32 = 10;

/// The message of a row, or the reason why the row cannot be read.
pub(super) type Payload = Result<Message, Arc<str>>;

pub(super) type ReadEntry = Entry<Payload>;

/// A database that a relay can read. Sealed: it is implemented here alone.
pub trait RelayDatabase: Operations {
    /// The statements.
    #[expect(private_bounds, reason = "seals the trait")]
    type Store: Store;

    /// The statements of the relay `relay`. A notification of another process is passed to `wake`.
    #[expect(private_interfaces, reason = "seals the trait")]
    fn store(outbox: &Outbox<Self>, relay: Uuid, settings: StoreSettings) -> Self::Store;
}

#[cfg_attr(
    not(feature = "postgres"),
    allow(dead_code, reason = "only PostgreSQL has notifications, and SQLite no sessions")
)]
#[derive(Debug, Clone)]
pub(super) struct StoreSettings {
    /// Notified when another process has written rows, where the database can tell.
    pub(super) wake: Arc<Notify>,
    /// A relay that was not seen for so long is dead.
    pub(super) lease: Duration,
    /// Set if a relay is also dead once its session is gone.
    pub(super) uses_session: bool,
    /// The longest that a statement may take.
    pub(super) statement_timeout: Duration,
    /// PostgreSQL: the time for which published rows are kept.
    pub(super) history: Option<Duration>,
}

/// The relays and the owners of the lanes, as the database has them.
#[derive(Debug)]
pub(super) struct View {
    pub(super) live: Vec<Uuid>,
    /// Read before `live`, so that an owner that is not there is dead.
    pub(super) lanes: Vec<(LaneEpoch, Option<Uuid>)>,
    /// Of the statement, where ids are in another order than commits.
    pub(super) xid: Option<u64>,
}

/// The statements of a relay. A function may run several, each a transaction of its own: after an error or a
/// drop the earlier ones are done. Running them all again does no harm.
pub(super) trait Store: Send + Sync + 'static {
    /// Tells that this relay is alive, and returns who else is.
    fn heartbeat(&self) -> impl Future<Output = Result<View, OutboxError>> + Send;

    /// Takes at most `count` lanes that are free or owned by `dead` relays, and forgets these and all relays that were
    /// not seen for [`FORGOTTEN_AFTER`] leases.
    fn take(
        &self,
        dead: &[Uuid],
        count: usize,
    ) -> impl Future<Output = Result<Vec<LaneEpoch>, OutboxError>> + Send;

    /// The parked rows of lanes, in order of their ids.
    fn parked(
        &self,
        lanes: &[LaneEpoch],
    ) -> impl Future<Output = Result<Vec<ParkedEntry>, OutboxError>> + Send;

    /// Gives lanes up.
    fn release(&self, lanes: &[LaneEpoch]) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Tells that this relay ends, gives up lanes that it took and does not know of, and closes its connections.
    fn leave(&self) -> impl Future<Output = Result<(), OutboxError>> + Send;

    fn hot(
        &self,
        reads: &[LaneRead],
    ) -> impl Future<Output = Result<ReadAnswer<ReadEntry>, OutboxError>> + Send;

    fn ids(
        &self,
        ranges: &[LaneRange],
    ) -> impl Future<Output = Result<ReadAnswer<LateRow>, OutboxError>> + Send;

    /// The rows that have the ids of `rows` now.
    fn rows(
        &self,
        rows: &[(LaneEpoch, RowId)],
    ) -> impl Future<Output = Result<ReadAnswer<ReadEntry>, OutboxError>> + Send;

    /// Deletes confirmed rows. Returns the number of its transaction, as [`View::xid`].
    fn delete(
        &self,
        rows: &[Delete],
    ) -> impl Future<Output = Result<Option<u64>, OutboxError>> + Send;

    /// Parks rows and declares rows dead, in the lanes that this relay owns; returns these.
    fn change(&self, moves: &[Move]) -> impl Future<Output = Result<Vec<i16>, OutboxError>> + Send;

    /// The messages of parked rows.
    fn load(
        &self,
        load: &Load,
    ) -> impl Future<Output = Result<HashMap<RowId, Payload>, OutboxError>> + Send;

    /// Uses no connection again that was made before: the server may be another one now.
    fn forget_connections(&self);

    /// Wakes the relays of other processes, where the database can.
    fn notify(&self) -> impl Future<Output = Result<(), OutboxError>> + Send;
}

/// The rows that keep their order with a row of this topic and key.
fn order_of(row: RowId, topic: Arc<str>, key: Option<bytes::Bytes>) -> OrderKey {
    match key {
        Some(key) => OrderKey::Key { topic, key },
        None => OrderKey::Row(row),
    }
}

/// A row for the lanes. One that cannot be read, with so many bytes of body, has no order, and becomes a dead row.
fn entry_of(
    row: RowId,
    read: Result<Message, sqlx::Error>,
    unread_size: impl FnOnce() -> usize,
) -> ReadEntry {
    match read {
        Ok(message) => {
            let size = message.body.len();
            let order = order_of(row, Arc::clone(&message.topic), message.key.clone());
            Entry { row, order, size, payload: Ok(message) }
        }
        Err(error) => {
            let reason = cut(format!("the row cannot be read: {error}"));
            let (order, size) = (OrderKey::Row(row), unread_size());
            Entry { row, order, size, payload: Err(reason) }
        }
    }
}
