//! One connection to the server, its health and its end; part of the pool, shared by its channels.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::consume::support::error_chain;
use futures_util::{Stream, StreamExt};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::confirm_channel::{ConfirmChannel, ConfirmChannels};
use super::socket::SocketHandle;
use crate::error::{AmqpError, ErrorKind, from_lapin};

/// The state of a connection, as its watcher task saw it last.
#[derive(Debug, Clone)]
pub(crate) enum Health {
    Up,
    /// The server blocks publishers; the reason in its words.
    Blocked(Arc<str>),
    Lost(AmqpError),
}

/// One connection to the server and the topology declared on it.
///
/// A task watches lapin's events, so that a loss or a block is known while nothing is sent. Dropped, it asks
/// lapin to close and shuts the socket after [`GRACE`] at the latest.
pub(crate) struct Connection {
    lapin: lapin::Connection,
    confirm_channels: ConfirmChannels,
    address: Arc<str>,
    socket: SocketHandle,
    health: watch::Receiver<Health>,
    watcher: AbortHandle,
    /// Open channels.
    pub(super) channels: AtomicU16,
    pub(super) declared: AtomicBool,
    /// Topics declared in the python-compatible mode.
    pub(super) topics: Mutex<HashSet<Arc<str>>>,
}

/// Bytes of a content header that are reserved for the server. It adds headers and sends the result whatever
/// its size, and a client ends the connection over a frame above `frame_max`.
///
/// One dead-lettering (`x-death`, `x-first-death-*`, `x-last-death-*`) takes at most 2,150 bytes, with all names
/// 255 bytes long; `x-delivery-count` and `x-acquired-count` take 60.
const ADDED: usize = 2_560;
/// Limit for closing a connection that answers.
const GRACE: Duration = Duration::from_secs(1);

impl Connection {
    pub(super) fn new(
        lapin: lapin::Connection,
        confirm_channels: ConfirmChannels,
        socket: SocketHandle,
        address: Arc<str>,
    ) -> Self {
        // The only listener: lapin's listeners share a queue, and each event reaches one of them.
        let events = lapin.events_listener();
        let status = lapin.status().clone();
        let (sender, health) = watch::channel(Health::Up);
        let watcher = tokio::spawn(watch(events, status, sender, Arc::clone(&address)));
        Self {
            lapin,
            confirm_channels,
            address,
            socket,
            health,
            watcher: watcher.abort_handle(),
            channels: AtomicU16::new(0),
            declared: AtomicBool::new(false),
            topics: Mutex::new(HashSet::new()),
        }
    }

    pub(crate) fn lapin(&self) -> &lapin::Connection {
        &self.lapin
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.lapin.status().connected()
    }

    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Publishes past lapin on one of its channels, which is in confirm mode and has published nothing.
    pub(crate) fn confirm_channel(&self, channel: &lapin::Channel) -> ConfirmChannel {
        self.confirm_channels.open(channel.id())
    }

    /// The largest frame, as negotiated with the server, in bytes.
    pub(crate) fn frame_max(&self) -> usize {
        self.lapin.configuration().frame_max() as usize
    }

    /// The largest content header frame that is published, in bytes: `frame_max` without [`ADDED`].
    pub(crate) fn header_max(&self) -> usize {
        let frame_max = self.frame_max();
        frame_max - ADDED.min(frame_max / 4)
    }

    /// Waits for the answer to `request`. A loss of the connection ends the wait, because lapin may leave a
    /// request unanswered then; a connection that does not answer within `limit` is killed, unless the server blocks
    /// it: then it answers after the unblock, and its messages are in flight. The limit starts again while messages wait
    /// to be written, because the request may be behind one that takes longer. The heartbeat ends a connection that
    /// takes nothing.
    pub(crate) async fn answered<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<T, AmqpError>>,
    ) -> Result<T, AmqpError> {
        let (mut request, mut health) = (pin!(request), self.health());
        let mut waited = self.confirm_channels.has_unwritten();
        loop {
            let answer = tokio::select! {
                answer = tokio::time::timeout(limit, &mut request) => answer,
                error = lost(&mut health) => return Err(error),
            };
            if let Ok(answer) = answer {
                return answer;
            }
            if let Health::Blocked(reason) = &*self.health.borrow() {
                let detail = format!("{} blocks publishers: {reason}", self.address);
                return Err(AmqpError::new(ErrorKind::Blocked, detail));
            }
            let waits = self.confirm_channels.has_unwritten();
            if !waited && !waits {
                break;
            }
            waited = waits;
        }
        self.kill();
        let detail =
            format!("{} did not answer within {limit:?} on an open connection", self.address);
        Err(AmqpError::new(ErrorKind::ConnectionLost, detail))
    }

    /// Forgets what was declared, so that the next channel declares it again.
    pub(crate) fn forget_topology(&self) {
        self.declared.store(false, Ordering::Release);
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Ends the connection at once, without `connection.close`.
    pub(crate) fn kill(&self) {
        self.socket.shut();
    }

    /// Closes the connection: with `connection.close` if the server reads, and within `limit` in any case.
    pub(super) async fn close(&self, limit: Duration) {
        // It would report the end as a loss.
        self.watcher.abort();
        let status = self.lapin.status();
        // lapin writes no frame on a blocked connection.
        if status.connected() && !status.blocked() {
            let closing = self.lapin.close(200, "OK".into());
            let _killed_below = tokio::time::timeout(limit.min(GRACE), closing).await;
        }
        self.socket.shut();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.watcher.abort();
        let status = self.lapin.status();
        let can_close = status.connected() && !status.blocked();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if can_close => {
                let socket = self.socket.clone();
                runtime.spawn(async move {
                    tokio::time::sleep(GRACE).await;
                    socket.shut();
                });
            }
            _ => self.socket.shut(),
        }
    }
}

cqrs_core::debug_fields!(Connection { address });

/// Waits for the loss of the connection.
pub(crate) async fn lost(health: &mut watch::Receiver<Health>) -> AmqpError {
    match health.wait_for(|health| matches!(health, Health::Lost(_))).await.as_deref() {
        Ok(Health::Lost(error)) => error.clone(),
        _ => AmqpError::new(ErrorKind::ConnectionLost, "the connection is closed"),
    }
}

async fn watch(
    events: impl Stream<Item = lapin::Event>,
    status: lapin::ConnectionStatus,
    health: watch::Sender<Health>,
    address: Arc<str>,
) {
    /// Interval at which the state is read, in case an event is missed.
    const INTERVAL: Duration = Duration::from_secs(1);
    let mut events = std::pin::pin!(events);
    let lost = |error: Option<&lapin::Error>| {
        let detail = format!("the connection to {address} was lost");
        Health::Lost(match error {
            Some(error) => from_lapin(ErrorKind::ConnectionLost, detail, error),
            None => AmqpError::new(ErrorKind::ConnectionLost, detail),
        })
    };
    loop {
        let now = match tokio::time::timeout(INTERVAL, events.next()).await {
            Ok(Some(lapin::Event::ConnectionBlocked(reason))) => Health::Blocked(reason.into()),
            Ok(Some(lapin::Event::ConnectionUnblocked)) => Health::Up,
            // Errors of single channels are handled by their owners.
            Ok(Some(lapin::Event::Error(error))) if !status.connected() => lost(Some(&error)),
            Ok(Some(_)) => continue,
            Ok(None) => lost(None),
            Err(_interval) if !status.connected() => lost(None),
            Err(_interval) => continue,
        };
        match &now {
            Health::Lost(error) => tracing::warn!(error = %error_chain(error), "connection lost"),
            Health::Blocked(reason) => {
                tracing::warn!(%address, %reason, "the server blocks this connection");
            }
            Health::Up => tracing::info!(%address, "the server unblocked this connection"),
        }
        let ended = matches!(now, Health::Lost(_));
        if health.send(now).is_err() || ended {
            return;
        }
    }
}
