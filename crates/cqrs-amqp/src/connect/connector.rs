//! Opens channels on pooled connections, with one backoff; used by the producer, the consumer and the copies.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::connection::{Connection, Health};
use super::dial::Dialer;
use super::pool::{Manager, Sink};
use super::topology::Topology;
use crate::config::{AmqpConfig, DeclareMode};
use crate::error::{AmqpError, ErrorKind, from_lapin};

/// Opens channels on pooled connections, one at a time, with one backoff for all.
///
/// `gate` is locked for a whole attempt: publishers do not race each other for connections, and a server that
/// is down gets one attempt per backoff, not one per channel.
pub(crate) struct Connector {
    pool: bb8::Pool<Manager>,
    address: Arc<str>,
    topology: Topology,
    channels_per_connection: u16,
    attempt_timeout: Duration,
    confirms: bool,
    gate: Mutex<Gate>,
}

struct Gate {
    failures: mpsc::UnboundedReceiver<AmqpError>,
    backoff: Backoff,
}

impl Connector {
    /// For publishing. Reads certificates and checks the dsn; connects nothing yet.
    pub(crate) fn new(config: &AmqpConfig) -> Result<Self, AmqpError> {
        Self::with_confirms(config, true)
    }

    /// For one subscription: one connection with one channel, called `name` in RabbitMQ's management
    /// pages. Declares nothing: the subscription declares its own queues.
    pub(crate) fn for_consuming(config: &AmqpConfig, name: &str) -> Result<Self, AmqpError> {
        Self::with_confirms(&Self::own(config, name, 1), false)
    }

    /// For retry copies and dead letters: one connection with `channels` channels. Declares nothing.
    pub(crate) fn for_copies(config: &AmqpConfig, channels: u16) -> Result<Self, AmqpError> {
        Self::with_confirms(&Self::own(config, "retries and dead letters", channels), true)
    }

    fn own(config: &AmqpConfig, name: &str, channels: u16) -> AmqpConfig {
        AmqpConfig {
            connection_name: format!("{}: {name}", config.connection_name),
            declare: DeclareMode::None,
            pool_size: 1,
            channels_per_connection: channels,
            ..config.clone()
        }
    }

    fn with_confirms(config: &AmqpConfig, confirms: bool) -> Result<Self, AmqpError> {
        let dialer = Dialer::new(config)?;
        let (sink, failures) = mpsc::unbounded_channel();
        let address = Arc::clone(dialer.address());
        let pool = bb8::Pool::builder()
            .max_size(u32::from(config.pool_size))
            // A connection ends when it breaks, not by age.
            .max_lifetime(None)
            .idle_timeout(None)
            // Checked in `checkout`; bb8 would report a dead idle connection as a failure to connect.
            .test_on_check_out(false)
            // The connector has its own backoff.
            .retry_connection(false)
            .connection_timeout(config.attempt_limit() * 2)
            .error_sink(Box::new(Sink(sink)))
            .build_unchecked(Manager(dialer));
        Ok(Self {
            pool,
            address,
            topology: Topology::new(config),
            channels_per_connection: config.channels_per_connection,
            attempt_timeout: config.attempt_limit(),
            confirms,
            gate: Mutex::new(Gate { failures, backoff: Backoff::new(config.reconnect) }),
        })
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// The server's address, without credentials.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Opens a channel on a connection with its topology declared: one attempt, after the backoff. Cancel safe.
    pub(crate) async fn open(&self) -> Result<PooledChannel, AmqpError> {
        let mut gate = self.gate.lock().await;
        if let Some(not_before) = gate.backoff.not_before() {
            tokio::time::sleep_until(not_before).await;
        }
        let opened = self.attempt(&mut gate.failures).await;
        if opened.is_err() {
            gate.backoff.failed(Instant::now());
        }
        opened
    }

    /// Records the loss of a channel. After one that was open for a while the next attempt starts at once, after
    /// one that was used with the shortest backoff, otherwise with the next longer one.
    pub(crate) async fn lost(&self, pooled: &PooledChannel) {
        let mut gate = self.gate.lock().await;
        let held = pooled.opened.elapsed() > Duration::from_secs(1);
        if held || pooled.confirmed {
            gate.backoff.held();
        }
        if !held {
            gate.backoff.failed(Instant::now());
        }
    }

    async fn attempt(
        &self,
        failures: &mut mpsc::UnboundedReceiver<AmqpError>,
    ) -> Result<PooledChannel, AmqpError> {
        while failures.try_recv().is_ok() {}
        let connection = self.checkout(failures).await?;
        if let Health::Blocked(reason) = &*connection.health().borrow() {
            // Opening would wait for the unblock, and killing the connection would lose its frames.
            let detail = format!("{} blocks publishers: {reason}", self.address);
            return Err(AmqpError::new(ErrorKind::Blocked, detail));
        }
        let setting_up = async {
            if !connection.declared.load(Ordering::Acquire) {
                self.topology.declare(&connection).await?;
                connection.declared.store(true, Ordering::Release);
            }
            let failed = |error: lapin::Error| {
                let detail = format!("opening a channel on {}", self.address);
                from_lapin(ErrorKind::ConnectionLost, detail, &error)
            };
            let channel = connection.lapin().create_channel().await.map_err(failed)?;
            if self.confirms {
                channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
            }
            Ok(channel)
        };
        let channel = connection.answered(self.attempt_timeout, setting_up).await?;
        Ok(PooledChannel::new(channel, connection))
    }

    /// An open connection with room for a channel. The pool opens a new one if all others are held here as full.
    async fn checkout(
        &self,
        failures: &mut mpsc::UnboundedReceiver<AmqpError>,
    ) -> Result<Arc<Connection>, AmqpError> {
        let mut full = Vec::new();
        loop {
            let connection = tokio::select! {
                biased;
                Some(error) = failures.recv() => return Err(error),
                got = self.pool.get() => got.map_err(|error| match error {
                    bb8::RunError::User(error) => error,
                    bb8::RunError::TimedOut => AmqpError::new(
                        ErrorKind::Connection,
                        format!("connecting to {}: no answer in time", self.address),
                    ),
                })?,
            };
            if !connection.is_up() {
                // Returned to the pool as broken, which drops it.
                continue;
            }
            if connection.channels.load(Ordering::Acquire) < self.channels_per_connection {
                return Ok(Arc::clone(&connection));
            }
            full.push(connection);
        }
    }

    /// Closes the idle connections, which are all after the channels were dropped.
    pub(crate) async fn close(&self, limit: Duration) {
        let mut held = Vec::new();
        while self.pool.state().idle_connections > 0 {
            match self.pool.get().await {
                Ok(connection) => held.push(connection),
                Err(_) => break,
            }
        }
        let closing = held.iter().map(|connection| connection.close(limit));
        futures_util::future::join_all(closing).await;
    }
}

/// An open channel. Counted on its connection until it is dropped.
pub(crate) struct PooledChannel {
    pub(crate) channel: Arc<lapin::Channel>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) health: watch::Receiver<Health>,
    /// Set after the server confirmed a message on it.
    pub(crate) confirmed: bool,
    opened: Instant,
}

impl PooledChannel {
    fn new(channel: lapin::Channel, connection: Arc<Connection>) -> Self {
        connection.channels.fetch_add(1, Ordering::AcqRel);
        let health = connection.health();
        let opened = Instant::now();
        Self { channel: Arc::new(channel), connection, health, confirmed: false, opened }
    }
}

impl Drop for PooledChannel {
    fn drop(&mut self) {
        self.connection.channels.fetch_sub(1, Ordering::AcqRel);
    }
}
