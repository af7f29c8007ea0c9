//! The supervisor of a source: the task that owns its connection, replaces lost sessions and closes the last.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::SourceError;
use cqrs_core::consume::support::far_deadline;
use futures_util::FutureExt;
use lapin::options::BasicNackOptions;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::inbound;
use super::inbound_delivery::InboundDelivery;
use super::reconnect::Reconnector;
use super::redelivery::Redelivery;
use super::session::Session;
use crate::connect::lost;
use crate::error::AmqpError;

/// Limit for cancelling the consumers.
const CANCELLING: Duration = Duration::from_secs(1);
/// Limit for closing a dropped source.
const CLOSING: Duration = Duration::from_secs(2);

/// The task of a source's connection: see the [module](super).
pub(super) struct Supervisor {
    reconnector: Reconnector,
    inbound: inbound::Sender,
    commands: mpsc::UnboundedReceiver<Command>,
    stopped: bool,
    /// Set if the last session was lost with settlements that the server may not have seen.
    settlements_in_doubt: bool,
}

/// A request of the source.
pub(super) enum Command {
    /// Stop receiving.
    Stop(oneshot::Sender<()>),
    Close(CloseRequest),
}

/// A request to close the source by a deadline.
pub(super) struct CloseRequest {
    deadline: Instant,
    /// Receives an error if settlements may be lost.
    reply: Option<oneshot::Sender<Result<(), SourceError>>>,
}

impl CloseRequest {
    pub(super) fn new(limit: Duration, reply: oneshot::Sender<Result<(), SourceError>>) -> Self {
        Self { deadline: far_deadline(limit), reply: Some(reply) }
    }

    fn of_dropped_source() -> Self {
        Self { deadline: Instant::now() + CLOSING, reply: None }
    }

    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// The reason for which a session ends.
enum SessionEnd {
    Lost(AmqpError),
    Close(CloseRequest),
}

impl Supervisor {
    pub(super) fn new(
        reconnector: Reconnector,
        inbound: inbound::Sender,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self { reconnector, inbound, commands, stopped: false, settlements_in_doubt: false }
    }

    pub(super) async fn run(mut self, mut session: Session) {
        let request = loop {
            match self.serve(&mut session).await {
                SessionEnd::Close(request) => return self.close(Some(session), request).await,
                SessionEnd::Lost(error) => match self.recover(session, error).await {
                    Ok(next) => session = next,
                    Err(request) => break request,
                },
            }
        };
        self.close(None, request).await;
    }

    /// Serves `session` until it is lost or the source is closed.
    async fn serve(&mut self, session: &mut Session) -> SessionEnd {
        let mut redelivery = Redelivery::new(Arc::clone(&session.epoch));
        let mut health = session.pooled.health.clone();
        loop {
            let (due, stopped) = (redelivery.due(), self.stopped);
            let Session { receiver, epoch, dropped, pooled } = session;
            let (channel, inbound) = (&*pooled.channel, Arc::clone(self.inbound.queue()));
            let receiving = async {
                match stopped {
                    false => receiver.run(self.inbound.queue()).await,
                    true => receiver.keep().await,
                }
            };
            let command = tokio::select! {
                biased;
                command = self.commands.recv() => command,
                error = lost(&mut health) => return SessionEnd::Lost(error),
                Some(delivery) = dropped.recv() => {
                    // After the stop the close requeues it with all others.
                    if !stopped {
                        redelivery.push(delivery);
                    }
                    continue;
                }
                () = sleep_until(due), if !stopped => {
                    redelivery.requeue(
                        |tag| requeue(channel, tag),
                        |tag, message| inbound.push(InboundDelivery::of_stream(tag, message, epoch)),
                    );
                    continue;
                }
                never = poll_fn(|cx| epoch.acks.poll_write(channel, cx)) => match never {},
                error = receiving => return SessionEnd::Lost(error),
            };
            match command {
                None => return SessionEnd::Close(CloseRequest::of_dropped_source()),
                Some(Command::Close(request)) => return SessionEnd::Close(request),
                Some(Command::Stop(done)) => {
                    self.stopped = true;
                    self.inbound.queue().clear();
                    session.stop(CANCELLING).await;
                    let _or_the_source_is_gone = done.send(());
                }
            }
        }
    }

    /// Opens a session in the place of `lost`, unless the source is closed first.
    async fn recover(&mut self, lost: Session, error: AmqpError) -> Result<Session, CloseRequest> {
        lost.epoch.end();
        self.inbound.queue().clear();
        self.settlements_in_doubt = lost.epoch.acks.count() > 0;
        self.reconnector.report(true, &error);
        self.reconnector.context.quarantine.lost();
        self.reconnector.connector.lost(&lost.pooled).await;
        lost.abandon().await;
        // After a stop or a permanent error nothing can be settled or received any more.
        let mut reconnecting = !self.stopped;
        loop {
            let command = tokio::select! {
                biased;
                command = self.commands.recv() => command,
                opened = self.reconnector.open(Some(&error)), if reconnecting => match opened {
                    Ok(session) => {
                        self.settlements_in_doubt = false;
                        return Ok(session);
                    }
                    Err(refusal) => {
                        self.inbound.fail(refusal.into());
                        reconnecting = false;
                        continue;
                    }
                },
            };
            match command {
                None => return Err(CloseRequest::of_dropped_source()),
                Some(Command::Close(request)) => return Err(request),
                Some(Command::Stop(done)) => {
                    (self.stopped, reconnecting) = (true, false);
                    let _or_the_source_is_gone = done.send(());
                }
            }
        }
    }

    async fn close(self, session: Option<Session>, request: CloseRequest) {
        /// Reserved for closing the connection.
        const CONNECTION: Duration = Duration::from_millis(200);
        let seen = match session {
            Some(mut session) => {
                let acked = session.epoch.acks.count() > 0;
                let closed = session.close(request.time_left().saturating_sub(CONNECTION)).await;
                if acked { closed.map_err(Some) } else { Ok(()) }
            }
            None if self.settlements_in_doubt => Err(None),
            None => Ok(()),
        };
        let limit = request.time_left().min(CLOSING);
        let connector = &self.reconnector.connector;
        // Longer than `limit`, at which the connector shuts the socket.
        let _or_dropped_here =
            tokio::time::timeout(limit + CONNECTION, connector.close(limit)).await;
        let result = seen.map_err(|cause| {
            let detail = format!(
                "subscription {:?}: the server did not answer before the end; messages that were \
                 settled last may be redelivered",
                self.reconnector.context.plan.name
            );
            match cause {
                Some(cause) => SourceError::new(detail).with_source(cause),
                None => SourceError::new(detail),
            }
        });
        if let Some(reply) = request.reply {
            let _or_the_source_is_gone = reply.send(result);
        }
    }
}

/// Requeues one delivery. Does not wait: if the channel is lost, the server requeues it.
fn requeue(channel: &lapin::Channel, tag: u64) {
    let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    // One poll gives the frame to lapin.
    let _or_lost = channel.basic_nack(tag, options).now_or_never();
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
