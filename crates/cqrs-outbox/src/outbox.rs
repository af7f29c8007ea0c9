//! The outbox: writes events to its table, in a transaction of the caller.

use std::fmt;
use std::sync::Arc;

use cqrs_core::{Message, Notification, NotificationEvent};
use sqlx::Pool;

use crate::compression::compress;
use crate::database::OutboxDatabase;
use crate::error::OutboxError;
use crate::lane::locks_of;
use crate::row::NewRow;
use crate::tables::{Dialect, Tables};
use crate::wakeup::Wakeup;

/// The outbox of one database: the factory of the unit of work whose commit stores the events that handlers
/// emit. Cloning is cheap; clones share the pool.
///
/// ```no_run
/// # use cqrs_core::Mediator;
/// # use cqrs_outbox::SqliteOutbox;
/// # async fn f(pool: sqlx::SqlitePool) -> Result<(), Box<dyn std::error::Error>> {
/// let outbox = SqliteOutbox::new(pool);
/// outbox.migrate().await?;
/// let mediator = Mediator::builder().outbox(outbox).build()?;
/// # Ok(())
/// # }
/// ```
pub struct Outbox<DB: OutboxDatabase>(Arc<Inner<DB>>);

struct Inner<DB: OutboxDatabase> {
    pool: Pool<DB>,
    tables: Tables,
    wakeup: Wakeup,
    writing: Writing,
}

/// How rows are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writing {
    /// Bodies of more bytes are compressed.
    pub(crate) compress_above: usize,
    /// PostgreSQL: set if each key is locked until the end of the transaction.
    pub(crate) locks_keys: bool,
}

impl<DB: OutboxDatabase> Outbox<DB> {
    /// An outbox with the default names of its tables.
    pub fn new(pool: Pool<DB>) -> Self {
        Self::of(pool, Tables::default())
    }

    /// An outbox with other names of its tables.
    ///
    /// # Errors
    /// If a schema is set on SQLite.
    pub fn with_tables(pool: Pool<DB>, tables: Tables) -> Result<Self, OutboxError> {
        if DB::DIALECT == Dialect::Sqlite && tables.schema().is_some() {
            return Err(OutboxError::config("SQLite has no schemas: set a prefix instead"));
        }
        Ok(Self::of(pool, tables))
    }

    fn of(pool: Pool<DB>, tables: Tables) -> Self {
        let (tables, wakeup) = (tables.of(DB::DIALECT), Wakeup::new());
        let writing = Writing { compress_above: usize::MAX, locks_keys: false };
        Self(Arc::new(Inner { pool, tables, wakeup, writing }))
    }

    /// Compresses (zlib) the bodies of more than so many bytes that this value writes, where that makes them smaller.
    /// Off by default.
    ///
    /// It saves room in the table and in the log of the database, and takes time while the transaction is open. Every
    /// relay of this version reads compressed rows, whatever the setting of its own outbox, and publishes the body as it
    /// was.
    #[must_use]
    pub fn compress_above(self, bytes: usize) -> Self {
        self.with_writing(|writing| writing.compress_above = bytes)
    }

    pub(crate) fn with_writing(self, set: impl FnOnce(&mut Writing)) -> Self {
        let Inner { pool, tables, wakeup, writing } = &*self.0;
        let mut writing = *writing;
        set(&mut writing);
        let (pool, tables, wakeup) = (pool.clone(), tables.clone(), wakeup.clone());
        Self(Arc::new(Inner { pool, tables, wakeup, writing }))
    }

    /// Creates the tables, or brings them to this version. Several processes may do it at once.
    ///
    /// Needs the right to create tables, and a schema if one is set that does not exist. With up-to-date
    /// tables it only reads on PostgreSQL and MySQL. See [`Tables::migrations`] to run them otherwise.
    ///
    /// # Errors
    /// If the database is away or refuses a statement. Nothing is changed then; on MySQL, which commits each
    /// statement, the next call does the rest.
    pub async fn migrate(&self) -> Result<(), OutboxError> {
        DB::migrate(self.pool(), self.tables())
            .await
            .map_err(|error| OutboxError::database("creating the tables of the outbox", error))
    }

    /// Writes an event in a transaction of the caller, without a mediator. Call it last before the commit,
    /// and [`Wakeup::wake`] after it, so that a relay of this process publishes it at once.
    ///
    /// ```no_run
    /// # use cqrs_core::Notification;
    /// # use cqrs_outbox::PostgresOutbox;
    /// # async fn f<UserCreated: Notification>(pool: sqlx::PgPool, outbox: PostgresOutbox, event: UserCreated)
    /// #     -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// // .. the writes of the caller ..
    /// outbox.add(&mut tx, event).await?;
    /// tx.commit().await?;
    /// outbox.wakeup().wake();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the event cannot be serialized, or the database refuses the row: roll back then.
    ///
    /// # Cancel safety
    /// Dropped, the row may be in the transaction: roll back.
    pub async fn add<P: Notification>(
        &self,
        transaction: &mut DB::Connection,
        event: impl Into<NotificationEvent<P>>,
    ) -> Result<(), OutboxError> {
        let message = event.into().to_message().map_err(OutboxError::serialize)?;
        self.put(transaction, &[message]).await
    }

    /// As [`add`](Self::add), for messages, in their order and in one statement: on MySQL one per 1,000
    /// messages or 4 MiB, on SQLite one per 2,900 messages.
    ///
    /// # Errors
    /// If the database refuses the rows: roll back then.
    ///
    /// # Cancel safety
    /// As [`add`](Self::add).
    pub async fn put(
        &self,
        transaction: &mut DB::Connection,
        messages: &[Message],
    ) -> Result<(), OutboxError> {
        if messages.is_empty() {
            return Ok(());
        }
        let compressed: Vec<_> = messages.iter().map(|message| self.compress(message)).collect();
        let rows = messages.iter().zip(&compressed).map(|(message, compressed)| {
            let row = NewRow::new(message, DB::DIALECT);
            match compressed {
                Some(body) => row.compressed(body),
                None => row,
            }
        });
        let rows: Vec<_> = rows.collect();
        let locks = if self.0.writing.locks_keys { locks_of(messages) } else { Vec::new() };
        DB::insert(transaction, self.tables(), &rows, &locks)
            .await
            .map_err(|error| OutboxError::database("writing events to the outbox", error))
    }

    fn compress(&self, message: &Message) -> Option<Vec<u8>> {
        let is_large = message.body.len() > self.0.writing.compress_above;
        if is_large { compress(&message.body) } else { None }
    }

    /// Wakes relays of this process.
    pub fn wakeup(&self) -> &Wakeup {
        &self.0.wakeup
    }

    /// The names of the tables.
    pub fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// The pool.
    pub fn pool(&self) -> &Pool<DB> {
        &self.0.pool
    }
}

impl<DB: OutboxDatabase> Clone for Outbox<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The pool's `Debug` would show the address of the database.
impl<DB: OutboxDatabase> fmt::Debug for Outbox<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("dialect", &DB::DIALECT)
            .field("tables", self.tables())
            .finish_non_exhaustive()
    }
}
