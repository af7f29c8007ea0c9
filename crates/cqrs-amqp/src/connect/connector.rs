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
use crate::{AmqpConfig, AmqpError, DeclareMode, ErrorKind};

/// Opens channels on pooled connections, one at a time, with one backoff for all.
///
/// `gate` is held for a whole attempt: it keeps the lanes from racing each other for connections and
/// makes a server that is down see one attempt per backoff, not one per channel.
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
    /// pages. Declares nothing: the subscription knows what it needs.
    pub(crate) fn for_consuming(config: &AmqpConfig, name: &str) -> Result<Self, AmqpError> {
        Self::with_confirms(&Self::own(config, name, 1), false)
    }

    /// For retry copies and dead letters: one connection with `channels` channels, which declares
    /// nothing.
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
            // Channels live on: a connection ends when it breaks, not by age.
            .max_lifetime(None)
            .idle_timeout(None)
            // We look ourselves; bb8 would report a dead idle connection as a failure to connect.
            .test_on_check_out(false)
            // The backoff is ours.
            .retry_connection(false)
            .connection_timeout(config.attempt_timeout() * 2)
            .error_sink(Box::new(Sink(sink)))
            .build_unchecked(Manager(dialer));
        Ok(Self {
            pool,
            address,
            topology: Topology::new(config),
            channels_per_connection: config.channels_per_connection,
            attempt_timeout: config.attempt_timeout(),
            confirms,
            gate: Mutex::new(Gate { failures, backoff: Backoff::new(config.reconnect.clone()) }),
        })
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// Where it connects to, without credentials.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Opens a channel on a connection whose topology stands: one attempt, after the
    /// backoff. Cancel safe.
    pub(crate) async fn open(&self) -> Result<Link, AmqpError> {
        let mut gate = self.gate.lock().await;
        if let Some(not_before) = gate.backoff.not_before() {
            tokio::time::sleep_until(not_before).await;
        }
        let opened = self.attempt(&mut gate.failures).await;
        match &opened {
            Ok(_) => {}
            Err(_) => gate.backoff.failed(Instant::now()),
        }
        opened
    }

    /// A link ended. After one that held for a while the next attempt starts at once, after one that
    /// was of some use with the shortest backoff, otherwise with the next longer one.
    pub(crate) async fn lost(&self, link: &Link) {
        let mut gate = self.gate.lock().await;
        let held = link.opened.elapsed() > Duration::from_secs(1);
        if held || link.confirmed {
            gate.backoff.held();
        }
        if !held {
            gate.backoff.failed(Instant::now());
        }
    }

    async fn attempt(
        &self,
        failures: &mut mpsc::UnboundedReceiver<AmqpError>,
    ) -> Result<Link, AmqpError> {
        while failures.try_recv().is_ok() {}
        let connection = self.checkout(failures).await?;
        if let Health::Blocked(reason) = &*connection.health().borrow() {
            // Opening would wait for the unblock, and killing it would lose what it carries.
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
                AmqpError::from_lapin(ErrorKind::ConnectionLost, detail, &error)
            };
            let channel = connection.lapin().create_channel().await.map_err(failed)?;
            if self.confirms {
                channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
            }
            Ok(channel)
        };
        let channel = connection.answered(self.attempt_timeout, setting_up).await?;
        Ok(Link::new(channel, connection))
    }

    /// A connection that works and has room for a channel. The pool makes a new one when those it has
    /// are held here as full.
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
                        ErrorKind::Connect,
                        format!("connecting to {}: no answer in time", self.address),
                    ),
                })?,
            };
            if !connection.is_up() {
                // Goes back as broken; the pool lets go of it.
                continue;
            }
            if connection.links.load(Ordering::Acquire) < self.channels_per_connection {
                return Ok(Arc::clone(&connection));
            }
            full.push(connection);
        }
    }

    /// Closes the idle connections: all, once the links are gone.
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
pub(crate) struct Link {
    pub(crate) channel: Arc<lapin::Channel>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) health: watch::Receiver<Health>,
    /// Whether it was of use: the server confirmed or delivered something on it.
    pub(crate) confirmed: bool,
    opened: Instant,
}

impl Link {
    fn new(channel: lapin::Channel, connection: Arc<Connection>) -> Self {
        connection.links.fetch_add(1, Ordering::AcqRel);
        let health = connection.health();
        let opened = Instant::now();
        Self { channel: Arc::new(channel), connection, health, confirmed: false, opened }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.links.fetch_sub(1, Ordering::AcqRel);
    }
}
