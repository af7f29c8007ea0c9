//! The connections of a relay to a server: lent for a statement, closed unless it ends well; used by the stores.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, Database, Error, Pool};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// A connection that was idle for so long is not used again: a firewall may have forgotten it.
const LONGEST_IDLE: Duration = Duration::from_secs(30);

/// A connection is not used for longer: after a failover it may be to a server that is not the one that is written, and
/// that answers every read.
const LONGEST_LIFE: Duration = Duration::from_secs(300);

/// At most so many connections as it has permits. The pool's own rules are not used: it asks the server before
/// and after each loan, without a bound.
#[derive(Debug)]
pub(in crate::relay) struct Connections<DB: Database> {
    /// Makes the connections, with the options and hooks of the application's pool.
    pool: Pool<DB>,
    permits: Semaphore,
    idle: Mutex<Idle<DB::Connection>>,
}

#[derive(Debug)]
struct Idle<C> {
    /// The one that was used last is the last one.
    connections: Vec<(Made<C>, Instant)>,
    /// Those of an earlier generation are not used again.
    generation: u64,
}

#[derive(Debug)]
struct Made<C> {
    connection: C,
    at: Instant,
    generation: u64,
}

/// A connection for one statement. Dropped before it is [given back](Self::give_back), it may hang on a dead
/// socket, and is closed without a word.
#[derive(Debug)]
pub(in crate::relay) struct Lent<'c, DB: Database> {
    of: &'c Connections<DB>,
    made: Made<DB::Connection>,
    is_new: bool,
    permit: SemaphorePermit<'c>,
}

impl<DB: Database> Connections<DB> {
    pub(in crate::relay) fn new(pool: Pool<DB>, most: usize) -> Self {
        let idle = Idle { connections: Vec::new(), generation: 0 };
        Self { pool, permits: Semaphore::new(most), idle: Mutex::new(idle) }
    }

    /// An idle connection, or a new one.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, it closes the connection that it makes.
    pub(in crate::relay) async fn lend(&self) -> Result<Lent<'_, DB>, Error> {
        let permit = self.permits.acquire().await.map_err(|_closed| Error::PoolClosed)?;
        if let Some(made) = self.take_idle() {
            return Ok(Lent { of: self, made, is_new: false, permit });
        }
        // Before it is made: it may be to the server that is forgotten meanwhile.
        let (generation, at) = (self.idle().generation, Instant::now());
        // Boxed: the compiler bounds the depth of the futures that a relay is part of.
        let connection = Box::pin(self.pool.acquire()).await?.detach();
        let made = Made { connection, at, generation };
        Ok(Lent { of: self, made, is_new: true, permit })
    }

    fn idle(&self) -> MutexGuard<'_, Idle<DB::Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<Made<DB::Connection>> {
        let mut idle = self.idle();
        let is_usable = |made: &Made<DB::Connection>, since: &Instant| {
            since.elapsed() < LONGEST_IDLE && made.at.elapsed() < LONGEST_LIFE
        };
        idle.connections.retain(|(made, since)| is_usable(made, since));
        idle.connections.pop().map(|(made, _)| made)
    }

    /// Uses no connection again that was made before. The server was away, and may be another one now.
    pub(in crate::relay) fn forget(&self) {
        let mut idle = self.idle();
        idle.generation += 1;
        idle.connections.clear();
    }

    /// Closes what is idle.
    pub(in crate::relay) async fn close(&self) {
        while let Some(made) = self.take_idle() {
            // The server sees the end of the socket, too.
            let _closed = made.connection.close().await;
        }
    }
}

impl<DB: Database> Lent<'_, DB> {
    pub(in crate::relay) fn connection(&mut self) -> &mut DB::Connection {
        &mut self.made.connection
    }

    /// `true` if no statement of the relay has run on it.
    #[cfg_attr(
        not(feature = "mysql"),
        allow(dead_code, reason = "only MySQL has settings to be made")
    )]
    pub(in crate::relay) fn is_new(&self) -> bool {
        self.is_new
    }

    /// After a statement that ended well.
    pub(in crate::relay) fn give_back(self) {
        let Self { of, made, is_new: _, permit } = self;
        let mut idle = of.idle();
        if made.generation == idle.generation {
            idle.connections.push((made, Instant::now()));
        }
        drop(idle);
        drop(permit);
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
    use sqlx::{Sqlite, SqliteConnection};

    use super::*;

    fn connections() -> Connections<Sqlite> {
        let pool = SqlitePoolOptions::new().max_connections(1);
        Connections::new(pool.connect_lazy_with(SqliteConnectOptions::new().in_memory(true)), 2)
    }

    /// Marks a connection, unless it is marked. `true` if it was new.
    async fn mark(connection: &mut SqliteConnection) -> bool {
        sqlx::query("CREATE TABLE mark (n int)").execute(connection).await.is_ok()
    }

    async fn use_once(connections: &Connections<Sqlite>) -> bool {
        let mut lent = connections.lend().await.unwrap();
        let is_new = mark(lent.connection()).await;
        assert_eq!(lent.is_new(), is_new);
        lent.give_back();
        is_new
    }

    #[tokio::test]
    async fn connection_is_used_again_after_success_only() {
        let connections = connections();
        assert!(use_once(&connections).await && !use_once(&connections).await);
        drop(connections.lend().await.unwrap());
        assert!(use_once(&connections).await, "after one that was not given back");
    }

    #[tokio::test]
    async fn connection_made_before_an_outage_is_not_used_again() {
        let connections = connections();
        use_once(&connections).await;
        let lent = connections.lend().await.unwrap();
        use_once(&connections).await;
        connections.forget();
        lent.give_back();
        assert!(use_once(&connections).await && !use_once(&connections).await);
    }

    #[tokio::test]
    async fn connection_ends_with_its_longest_life() {
        let connections = connections();
        use_once(&connections).await;
        tokio::time::pause();
        for _ in 0..15 {
            let lent = connections.lend().await.unwrap();
            assert!(!lent.is_new());
            lent.give_back();
            tokio::time::advance(Duration::from_secs(20)).await;
        }
        assert!(connections.take_idle().is_none());
    }
}
