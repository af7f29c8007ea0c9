//! The relay of python-cqrs's outbox table, as users build and run it.
//!
//! # The protocol
//! A round is one transaction. It takes an advisory lock, so that one relay drains a table at a time and rows are
//! published in order of their ids; reads and locks rows; publishes them; and sets their statuses.
//!
//! # Invariants
//! 1. **Nothing is lost.** A row becomes `PRODUCED` by its confirm alone. A relay that ends at any point leaves the
//!    row as it was.
//! 2. **Statuses.** A confirm is written whoever else has the row by then. A failure is written if the row has the
//!    counter that was read and is not `PRODUCED`: written twice, it counts once, and it never takes back a confirm
//!    of Python's producer.
//! 3. **Take-over.** The lock is gone with the transaction. The server ends the session of a relay that is silent
//!    for the lease. Its confirms are written when it goes on, and another relay may have repeated its messages. It
//!    starts nothing without a statement that succeeded within two thirds of the lease: after a silence it publishes
//!    one row at most without the lock. A session that ends otherwise is noticed within a third of the lease.

mod driver;
mod store;
mod unroutable;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::MessageBroker;
use tokio_util::sync::CancellationToken;

use self::driver::Driver;
use self::store::Store;
use super::builder::stop_on;
use super::lane::Backoff;
use super::status::Progress;
use super::{RelayReport, RelayStatus};
use crate::error::OutboxError;
use crate::python::{Compression, PythonOutbox};

/// A row with so many failed attempts is not tried again: `MAX_FLUSH_COUNTER_VALUE` of the package.
const MAX_ATTEMPTS: i16 = 5;

/// Publishes the rows of a [`PythonOutbox`] to a broker, in place of python-cqrs's `EventProducer`: at least once,
/// and in order of their ids as far as the broker keeps the order of messages without a key.
///
/// The message is the one that the package sends: the stored bytes (decompressed, if they are a zlib stream), no
/// key, and no headers, or for an event of [`protobuf`](PythonRelayBuilder::protobuf) the media type and the headers
/// `event_name` and `message_id`. Its id is the event's.
///
/// A confirmed row becomes `PRODUCED`. A row that fails, for good or not, becomes `NOT_PRODUCED` and its
/// `flush_counter` grows by one; with 5 it is not tried again. While the broker is away nothing is counted. A topic without a destination
/// ([`Unroutable`](cqrs_core::PublishErrorKind::Unroutable)) waits alone, and nothing is counted. On RabbitMQ, set
/// `DeclareMode::PythonCompatible`, which declares what python-cqrs declares.
///
/// Any number of relays may run: one drains the table, the others take over when it ends. Python's producer locks
/// no rows. Beside it nothing is lost, but both may publish the same row: stop it first.
///
/// ```no_run
/// # use cqrs_outbox::{PythonOutbox, PythonRelay};
/// # async fn f(pool: sqlx::PgPool, broker: cqrs_core::MemoryBroker) -> Result<(), Box<dyn std::error::Error>> {
/// let relay = PythonRelay::builder(&PythonOutbox::new(pool), broker).build()?;
/// let handle = relay.handle();
/// let running = tokio::spawn(relay.run());
/// // ..
/// handle.stop();
/// println!("{:?}", running.await?);
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing until it runs"]
pub struct PythonRelay {
    driver: Driver,
    handle: PythonRelayHandle,
}

impl PythonRelay {
    /// Settings of a relay from `outbox` to `broker`.
    ///
    /// The relay has one connection of its own, with the options and hooks of the outbox's pool.
    pub fn builder(outbox: &PythonOutbox, broker: impl MessageBroker) -> PythonRelayBuilder {
        let settings = Settings::new(outbox.uses_zlib());
        PythonRelayBuilder { outbox: outbox.clone(), broker: Arc::new(broker), settings }
    }

    /// A handle to watch and stop it.
    pub fn handle(&self) -> PythonRelayHandle {
        self.handle.clone()
    }

    /// Publishes until [`PythonRelayHandle::stop`] is called or the broker value is shut down.
    ///
    /// It never ends for an error of the database or the broker: it waits and tries again, with one line in the log
    /// per outage. At a stop it starts nothing new, waits for the confirms (at most
    /// [`drain`](PythonRelayBuilder::drain)) and sets the statuses of their rows.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost: the rows in flight are published again by the next relay.
    pub async fn run(self) -> RelayReport {
        let Self { driver, handle } = self;
        driver.run(handle.stop).await
    }

    /// As [`run`](Self::run), until `signal` resolves, too.
    pub async fn run_until<F: Future>(self, signal: F) -> RelayReport {
        let stop = self.handle.stop.clone();
        stop_on(signal, stop, self.run()).await
    }
}

impl fmt::Debug for PythonRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PythonRelay").finish_non_exhaustive()
    }
}

/// Watches and stops a [`PythonRelay`]. Cloning is cheap.
#[derive(Clone)]
pub struct PythonRelayHandle {
    outbox: PythonOutbox,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

impl PythonRelayHandle {
    /// Stops the relay gracefully.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// `true` while the relay waits for its database. Asks nobody.
    pub fn is_database_away(&self) -> bool {
        self.progress.is_database_away()
    }

    /// The state of the table and of this relay. Counts the rows, on the pool of the outbox: not for every request. It
    /// reads all rows that are not `PRODUCED`, by an index on `event_status` if there is one. The figures of the relay
    /// itself are as old as its last look at the table, or a second.
    ///
    /// | of [`RelayStatus`] | in this table |
    /// |---|---|
    /// | `pending`, `oldest` | `NEW` rows, and the age of the earliest `created_at` of them |
    /// | `parked` | Rows that failed, and have attempts left |
    /// | `dead` | Rows without an attempt left |
    /// | `lanes` | 1 while this relay has rows to publish, 0 while it has none or another one has the table |
    /// | `late` | Not counted: 0 |
    ///
    /// # Errors
    /// If the database is away, or the table is missing.
    pub async fn status(&self) -> Result<RelayStatus, OutboxError> {
        Ok(self.progress.status(store::counts(&self.outbox).await?))
    }
}

impl fmt::Debug for PythonRelayHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PythonRelayHandle").field("outbox", &self.outbox).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
struct Settings {
    batch: usize,
    backoff: Backoff,
    poll: Duration,
    idle_poll: Duration,
    lease: Duration,
    drain: Duration,
    compression: Compression,
    /// The names of the events that are stored as Protobuf.
    protobuf: HashSet<String>,
}

impl Settings {
    fn new(uses_zlib: bool) -> Self {
        Self {
            batch: 500,
            backoff: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(300) },
            poll: Duration::from_millis(250),
            idle_poll: Duration::from_secs(1),
            lease: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            compression: if uses_zlib { Compression::Zlib } else { Compression::Detect },
            protobuf: HashSet::new(),
        }
    }
}

/// Settings of a [`PythonRelay`].
#[must_use = "call `build`"]
pub struct PythonRelayBuilder {
    outbox: PythonOutbox,
    broker: Arc<dyn MessageBroker>,
    settings: Settings,
}

impl PythonRelayBuilder {
    /// Names of events that Python stores as Protobuf: those that its `OutboxedEventMap` has a serializer for. Called
    /// again, it adds names.
    pub fn protobuf<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.settings.protobuf.extend(names.into_iter().map(Into::into));
        self
    }

    /// Publishes all payloads as they are stored. By default one that is a whole zlib stream is decompressed; with
    /// [`PythonOutbox::with_zlib`] each is, and one that cannot be counts as a failure.
    pub fn verbatim(mut self) -> Self {
        self.settings.compression = Compression::None;
        self
    }

    /// The new rows that are read, locked and held in memory at once, at most; and a tenth of that of those that failed
    /// before. 500 by default. Of each it is at most 16 MiB of payloads, or one row. The broker's window bounds how many
    /// of them are in flight.
    pub fn batch(mut self, rows: usize) -> Self {
        self.settings.batch = rows;
        self
    }

    /// The pause after the first failure, of a row or of a topic without a destination. It doubles with each further
    /// one, up to `longest`. 1 s and 5 min by default: the 5 attempts of a row take 15 s. The table has no column for
    /// it: a new relay, and Python's producer, try the row at once.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.backoff = Backoff { first, longest };
        self
    }

    /// How often the relay looks for rows: `active`, and `idle` after some looks without a row, and while another
    /// relay drains the table. 250 ms and 1 s by default.
    pub fn poll(mut self, active: Duration, idle: Duration) -> Self {
        (self.settings.poll, self.settings.idle_poll) = (active, idle);
        self
    }

    /// The database ends the session of a relay that is silent for so long within a batch, so that another takes
    /// over. It is also the limit of one statement, which the server ends, too, and of the time in which a batch starts
    /// publishes. 30 s by default.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// The longest wait for confirms at a stop. 30 s by default. The statements at the end may take 5 s more.
    pub fn drain(mut self, longest: Duration) -> Self {
        self.settings.drain = longest;
        self
    }

    /// The relay.
    ///
    /// # Errors
    /// If a setting is zero, or the lease is shorter than 3 s.
    pub fn build(self) -> Result<PythonRelay, OutboxError> {
        let Self { outbox, broker, settings } = self;
        let Settings { batch, backoff, poll, idle_poll, lease, .. } = &settings;
        if *batch == 0 || [backoff.first, *poll, *idle_poll].contains(&Duration::ZERO) {
            return Err(OutboxError::config(
                "a setting of the relay is zero: leave it to its default",
            ));
        }
        if *lease < Duration::from_secs(3) {
            return Err(OutboxError::config("the lease of the relay is below 3 s"));
        }
        let store = Store::new(&outbox, *lease);
        let progress = Arc::new(Progress::default());
        let driver = Driver::new(store, broker, settings, Arc::clone(&progress));
        let stop = CancellationToken::new();
        Ok(PythonRelay { driver, handle: PythonRelayHandle { outbox, progress, stop } })
    }
}

impl fmt::Debug for PythonRelayBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PythonRelayBuilder")
            .field("outbox", &self.outbox)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
