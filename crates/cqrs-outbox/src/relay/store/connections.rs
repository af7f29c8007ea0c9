//! The connections of a relay to a server: lent for a statement, closed unless it ends well; used by the stores.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, Database, Error, Pool};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// A connection that was idle for so long is not used again: a firewall may have forgotten it.
const LONGEST_IDLE: Duration = Duration::from_secs(30);

/// At most so many connections as it has permits. The pool's own rules are not used: it asks the server before
/// and after each loan, without a bound.
#[derive(Debug)]
pub(in crate::relay) struct Connections<DB: Database> {
    /// Makes the connections, with the options and hooks of the application's pool.
    pool: Pool<DB>,
    permits: Semaphore,
    /// The one that was used last is the last one.
    idle: Mutex<Vec<(DB::Connection, Instant)>>,
}

/// A connection for one statement. Dropped before it is [given back](Self::give_back), it may hang on a dead
/// socket, and is closed without a word.
#[derive(Debug)]
pub(in crate::relay) struct Lent<'c, DB: Database> {
    of: &'c Connections<DB>,
    connection: DB::Connection,
    permit: SemaphorePermit<'c>,
}

impl<DB: Database> Connections<DB> {
    pub(in crate::relay) fn new(pool: Pool<DB>, most: usize) -> Self {
        Self { pool, permits: Semaphore::new(most), idle: Mutex::default() }
    }

    /// An idle connection, or a new one.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, it closes the connection that it makes.
    pub(in crate::relay) async fn lend(&self) -> Result<Lent<'_, DB>, Error> {
        let permit = self.permits.acquire().await.map_err(|_closed| Error::PoolClosed)?;
        let connection = match self.take_idle() {
            Some(connection) => connection,
            None => self.pool.acquire().await?.detach(),
        };
        Ok(Lent { of: self, connection, permit })
    }

    fn take_idle(&self) -> Option<DB::Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < LONGEST_IDLE);
        idle.pop().map(|(connection, _)| connection)
    }

    /// Closes what is idle.
    pub(in crate::relay) async fn close(&self) {
        while let Some(connection) = self.take_idle() {
            // The server sees the end of the socket, too.
            let _closed = connection.close().await;
        }
    }
}

impl<DB: Database> Lent<'_, DB> {
    pub(in crate::relay) fn connection(&mut self) -> &mut DB::Connection {
        &mut self.connection
    }

    /// After a statement that ended well.
    pub(in crate::relay) fn give_back(self) {
        let Self { of, connection, permit } = self;
        let mut idle = of.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push((connection, Instant::now()));
        drop(permit);
    }
}
