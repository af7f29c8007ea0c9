//! The relay and its settings, as users build and run it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::MessageBroker;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::driver::Driver;
use super::lane::Backoff;
use super::settings::Settings;
use super::status::{Progress, RelayReport, RelayStatus};
use super::store::{RelayDatabase, StoreSettings};
use crate::error::OutboxError;
use crate::outbox::Outbox;

/// Publishes the rows of an [`Outbox`] to a broker: at least once, in order per topic and key.
///
/// Any number of relays, in one process or several, share the lanes of an outbox. Each runs beside the rest
/// of its service:
///
/// ```
/// use cqrs_core::{MemoryBroker, Message};
/// use cqrs_outbox::{Relay, SqliteOutbox};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
/// # let pool = options.connect("sqlite::memory:").await?;
/// let outbox = SqliteOutbox::new(pool.clone());
/// outbox.migrate().await?;
/// let broker = MemoryBroker::new();
/// let published = broker.subscriber("orders", "audit");
///
/// let relay = Relay::builder(&outbox, broker).build()?;
/// let handle = relay.handle();
/// let running = tokio::spawn(relay.run());
///
/// let mut tx = pool.begin().await?;
/// outbox.put(&mut tx, &[Message::new("orders", "{}")]).await?;
/// tx.commit().await?;
/// outbox.wakeup().wake();
///
/// published.recv().await.expect("the event").ack();
/// handle.stop();
/// assert_eq!(running.await?.published, 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing until it runs"]
pub struct Relay<DB: RelayDatabase> {
    driver: Driver<DB::Store>,
    outbox: Outbox<DB>,
    notified: Arc<Notify>,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

impl<DB: RelayDatabase> Relay<DB> {
    /// Settings of a relay from `outbox` to `broker`.
    ///
    /// On PostgreSQL and MySQL the relay has up to 4 connections of its own, with the options of the outbox's pool and
    /// its `after_connect`. The pool's other hooks and limits (`before_acquire`, `after_release`, `max_lifetime`) do
    /// not apply to them. On SQLite it uses the pool itself: while handlers hold all connections for longer than the
    /// [lease](RelayBuilder::lease) it loses its lane, and another relay publishes the rows in flight again.
    pub fn builder(outbox: &Outbox<DB>, broker: impl MessageBroker) -> RelayBuilder<DB> {
        let settings = Settings::default();
        let (outbox, broker) = (outbox.clone(), Arc::new(broker));
        RelayBuilder { outbox, broker, settings, statement_timeout: None }
    }

    /// A handle to watch and stop it.
    pub fn handle(&self) -> RelayHandle<DB> {
        let (outbox, progress) = (self.outbox.clone(), Arc::clone(&self.progress));
        RelayHandle { outbox, progress, stop: self.stop.clone() }
    }

    /// Publishes until [`RelayHandle::stop`] is called or the broker value is shut down.
    ///
    /// It never ends for an error of the database or the broker: it waits and tries again, with one line in
    /// the log per outage and kind of statement. At a stop it starts nothing new, waits for the confirms (at most
    /// [`drain`](RelayBuilder::drain)), deletes their rows and releases its lanes.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost: the rows in flight are published again by the next owner of their lanes. On
    /// PostgreSQL and MySQL that is at once, elsewhere after the [lease](RelayBuilder::lease).
    pub async fn run(self) -> RelayReport {
        let Self { driver, outbox, notified, progress: _, stop } = self;
        driver.run(stop, outbox.wakeup().subscribe(), notified).await
    }

    /// As [`run`](Self::run), until `signal` resolves, too.
    pub async fn run_until<F: Future>(self, signal: F) -> RelayReport {
        let stop = self.stop.clone();
        stop_on(signal, stop, self.run()).await
    }
}

/// Awaits `run`, and cancels `stop` once `signal` resolves.
pub(super) async fn stop_on<F: Future>(
    signal: F,
    stop: CancellationToken,
    run: impl Future<Output = RelayReport>,
) -> RelayReport {
    let stopping = async {
        signal.await;
        stop.cancel();
        std::future::pending().await
    };
    tokio::select! {
        report = run => report,
        never = stopping => never,
    }
}

impl<DB: RelayDatabase> fmt::Debug for Relay<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("outbox", &self.outbox).finish_non_exhaustive()
    }
}

/// Watches and stops a [`Relay`]. Cloning is cheap.
pub struct RelayHandle<DB: RelayDatabase> {
    outbox: Outbox<DB>,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

impl<DB: RelayDatabase> RelayHandle<DB> {
    /// Stops the relay gracefully.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// `true` while the relay waits for its database. Asks nobody.
    pub fn is_database_away(&self) -> bool {
        self.progress.is_database_away()
    }

    /// The state of the outbox and of this relay. Counts the rows, on the pool of the outbox: not for every
    /// request. The figures of the relay itself are up to a second old.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn status(&self) -> Result<RelayStatus, OutboxError> {
        Ok(self.progress.status(DB::counts(&self.outbox).await?))
    }
}

impl<DB: RelayDatabase> Clone for RelayHandle<DB> {
    fn clone(&self) -> Self {
        let (outbox, progress) = (self.outbox.clone(), Arc::clone(&self.progress));
        Self { outbox, progress, stop: self.stop.clone() }
    }
}

impl<DB: RelayDatabase> fmt::Debug for RelayHandle<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayHandle").field("outbox", &self.outbox).finish_non_exhaustive()
    }
}

/// Settings of a [`Relay`].
#[must_use = "call `build`"]
pub struct RelayBuilder<DB: RelayDatabase> {
    pub(super) outbox: Outbox<DB>,
    broker: Arc<dyn MessageBroker>,
    pub(super) settings: Settings,
    /// As it was set.
    statement_timeout: Option<Duration>,
}

impl<DB: RelayDatabase> RelayBuilder<DB> {
    /// The rows that the relay holds in memory, over all its lanes. 8,192 by default. The broker's window
    /// bounds how many of them are in flight.
    pub fn window(mut self, rows: usize) -> Self {
        self.settings.window = rows;
        self
    }

    /// The bytes of the bodies that the relay holds in memory, over all its lanes, which have equal parts of it.
    /// 64 MiB by default. A row that is larger than what is left of its lane's part is read alone, so the bound
    /// is exceeded by at most two rows per lane (one of them parked).
    ///
    /// Not counted are keys, headers and metadata, what is known of parked rows without their bodies, the second
    /// copy that a read holds for a moment, and the copies in the broker's own window.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.settings.window_bytes = bytes;
        self
    }

    /// The pause of a key after its first failure, which doubles up to `longest`. 1 s and 5 min by default.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.backoff = Backoff { first, longest };
        self
    }

    /// How often the relay looks for rows that no wake-up told of: `active`, and `idle` after some looks
    /// without a row. 250 ms and 1 s by default.
    pub fn poll(mut self, active: Duration, idle: Duration) -> Self {
        (self.settings.poll, self.settings.idle_poll) = (active, idle);
        self
    }

    /// How often the relay reads the ids of all rows of its lanes, the proof that it skipped none. 30 s by
    /// default, and at least 20 times as long as that takes.
    pub fn sweep(mut self, every: Duration) -> Self {
        self.settings.sweep = every;
        self
    }

    /// MySQL: the longest time from the insert of an event to the commit of its transaction. 60 s by default. Each read
    /// looks again at the ids of so long a time. A row that takes longer is found by the next [sweep](Self::sweep), so
    /// later ones of its key may be published before it.
    pub fn longest_transaction(mut self, longest: Duration) -> Self {
        self.settings.longest_transaction = longest;
        self
    }

    /// A relay whose heartbeat (one a second) is older than this, by the database's clock, loses its lanes.
    /// 30 s by default.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// PostgreSQL and MySQL: tells by the heartbeat alone if a relay is alive, without a session of its own and without
    /// settings of its connections (on MySQL: none but `autocommit = 1`). For a pooler that lends connections for a transaction or refuses startup
    /// parameters (pgbouncer, ProxySQL). A take-over waits for the [lease](Self::lease) then, and wake-ups of other
    /// processes are not seen before the next poll. On PostgreSQL each statement has two round trips more, for a
    /// transaction with these settings.
    pub fn heartbeat_only(mut self) -> Self {
        self.settings.uses_session = false;
        self
    }

    /// The longest that a statement of the relay may take, the wait for a connection included, and the statements
    /// that belong together (a heartbeat has up to three). 10 s by default, or a third of a shorter
    /// [lease](Self::lease).
    ///
    /// After it its connection is closed, and the statement is tried again, as after any error of the database. A
    /// read asks for fewer lanes, rows and bytes then. The server ends the statement, too: on MySQL and MariaDB not with
    /// [`heartbeat_only`](Self::heartbeat_only), and on MySQL only if it reads or waits for the lock of a row.
    pub fn statement_timeout(mut self, longest: Duration) -> Self {
        self.statement_timeout = Some(longest);
        self
    }

    /// The longest wait for confirms at a stop. 30 s by default.
    pub fn drain(mut self, longest: Duration) -> Self {
        self.settings.drain = longest;
        self
    }

    /// Makes a message that has no destination (an unbound exchange, a missing topic) a dead row at once. By
    /// default it is tried again later, as after any failure: a binding may be missing for a minute only.
    pub fn dead_letter_unroutable(mut self) -> Self {
        self.settings.dead_letters_unroutable = true;
        self
    }

    /// The relay.
    ///
    /// # Errors
    /// If a setting is zero, the lease is shorter than 3 s, or the statement timeout longer than a third of it.
    pub fn build(self) -> Result<Relay<DB>, OutboxError> {
        let Self { outbox, broker, mut settings, statement_timeout } = self;
        let longest = settings.lease / 3;
        let statement_timeout =
            statement_timeout.unwrap_or(settings.statement_timeout.min(longest));
        settings.statement_timeout = statement_timeout;
        let Settings { window, window_bytes, backoff, poll, idle_poll, sweep, .. } = settings;
        let times = [
            backoff.first,
            poll,
            idle_poll,
            sweep,
            settings.longest_transaction,
            statement_timeout,
        ];
        if window == 0 || window_bytes == 0 || times.contains(&Duration::ZERO) {
            return Err(OutboxError::config(
                "a setting of the relay is zero: leave it to its default",
            ));
        }
        if settings.lease < Duration::from_secs(3) {
            return Err(OutboxError::config(
                "the lease of the relay is below three heartbeats (3 s)",
            ));
        }
        if statement_timeout > longest {
            return Err(OutboxError::config(
                "the statement timeout of the relay is above a third of its lease: make the lease longer",
            ));
        }
        let (notified, progress) = (Arc::new(Notify::new()), Arc::new(Progress::default()));
        // Random: the advisory lock has four bytes of it.
        let relay = Uuid::now_v7();
        let store = StoreSettings {
            wake: Arc::clone(&notified),
            lease: settings.lease,
            uses_session: settings.uses_session,
            statement_timeout,
            history: settings.history,
        };
        let store = Arc::new(DB::store(&outbox, relay, store));
        let driver = Driver::new(store, relay, broker, settings, Arc::clone(&progress));
        let stop = CancellationToken::new();
        Ok(Relay { driver, outbox, notified, progress, stop })
    }
}

impl<DB: RelayDatabase> fmt::Debug for RelayBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
