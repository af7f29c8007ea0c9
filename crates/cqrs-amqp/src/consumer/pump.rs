//! The task of a source's connection, part of the consumer: it reopens lost channels and obeys the source.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::SourceError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::arrived::Arrived;
use super::generation::Again;
use super::inbound;
use super::line::Line;
use super::opener::Opener;
use super::returns::Returns;
use crate::connect::Health;
use crate::{AmqpError, ErrorKind};

/// How long the server may take to stop sending.
const CANCELLING: Duration = Duration::from_secs(1);
/// How long a source that was dropped may take to leave.
const LEAVING: Duration = Duration::from_secs(2);

/// The task that owns a source's connection: see the [module](super).
pub(super) struct Pump {
    opener: Opener,
    inbound: inbound::Sender,
    commands: mpsc::UnboundedReceiver<Command>,
    stopped: bool,
    /// Whether the last line was lost with settlements on it that the server may not have seen.
    doubtful: bool,
}

/// What the source asks of the pump.
pub(super) enum Command {
    /// Receive nothing more.
    Stop(oneshot::Sender<()>),
    Close(Closing),
}

/// Leave until then.
pub(super) struct Closing {
    at: Instant,
    /// Whether settlements may be lost.
    reply: Option<oneshot::Sender<Result<(), SourceError>>>,
}

impl Closing {
    pub(super) fn new(deadline: Duration, reply: oneshot::Sender<Result<(), SourceError>>) -> Self {
        Self { at: Instant::now() + deadline.min(FAR), reply: Some(reply) }
    }

    fn dropped() -> Self {
        Self { at: Instant::now() + LEAVING, reply: None }
    }

    fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// An instant that is later than this is not one on every platform.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why a line is no longer served.
enum End {
    Lost(AmqpError),
    Close(Closing),
}

impl Pump {
    pub(super) fn new(
        opener: Opener,
        inbound: inbound::Sender,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self { opener, inbound, commands, stopped: false, doubtful: false }
    }

    pub(super) async fn run(mut self, mut line: Line) {
        let closing = loop {
            match self.serve(&mut line).await {
                End::Close(closing) => return self.leave(Some(line), closing).await,
                End::Lost(error) => match self.recover(line, error).await {
                    Ok(again) => line = again,
                    Err(closing) => break closing,
                },
            }
        };
        self.leave(None, closing).await;
    }

    /// Hands on what comes on `line` until it is lost or no longer wanted.
    async fn serve(&mut self, line: &mut Line) -> End {
        let mut returns = Returns::new(Arc::clone(&line.generation));
        let mut health = line.link.health.clone();
        loop {
            let (due, stopped) = (returns.due(), self.stopped);
            let Line { incoming, generation, returned, .. } = line;
            let inbound = Arc::clone(self.inbound.queue());
            let hand_on = move |arrived| inbound.push(arrived);
            let coming = async {
                match stopped {
                    false => incoming.run(self.inbound.queue()).await,
                    true => incoming.keep().await,
                }
            };
            let command = tokio::select! {
                biased;
                command = self.commands.recv() => command,
                error = lost(&mut health) => return End::Lost(error),
                Some(delivery) = returned.recv() => {
                    // After the stop it goes back with all that is left.
                    if !stopped {
                        returns.push(delivery);
                    }
                    continue;
                }
                () = sleep_until(due), if !stopped => {
                    returns.give_back(|tag, acker, Again { queue, original }| {
                        hand_on(Arrived::again(queue, tag, acker, original, generation));
                    });
                    continue;
                }
                error = coming => return End::Lost(error),
            };
            match command {
                None => return End::Close(Closing::dropped()),
                Some(Command::Close(closing)) => return End::Close(closing),
                Some(Command::Stop(done)) => {
                    self.stopped = true;
                    self.inbound.queue().clear();
                    line.stop(CANCELLING).await;
                    let _nobody_waits = done.send(());
                }
            }
        }
    }

    /// Opens a line in the place of `lost`, unless the source is closed first.
    async fn recover(&mut self, lost: Line, error: AmqpError) -> Result<Line, Closing> {
        lost.generation.end();
        self.inbound.queue().clear();
        self.doubtful = lost.generation.acked() > 0;
        self.opener.report(true, &error);
        self.opener.desk.quarantine.lost();
        self.opener.connector.lost(&lost.link).await;
        lost.abandon().await;
        while !self.stopped {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    None => return Err(Closing::dropped()),
                    Some(Command::Close(closing)) => return Err(closing),
                    Some(Command::Stop(done)) => {
                        self.stopped = true;
                        let _nobody_waits = done.send(());
                    }
                },
                opened = self.opener.open(Some(&error)) => match opened {
                    Ok(line) => {
                        self.doubtful = false;
                        return Ok(line);
                    }
                    Err(refusal) => {
                        self.inbound.fail(refusal.into());
                        break;
                    }
                },
            }
        }
        // Nothing can be settled any more, and nothing comes.
        loop {
            match self.commands.recv().await {
                None => return Err(Closing::dropped()),
                Some(Command::Close(closing)) => return Err(closing),
                Some(Command::Stop(done)) => drop(done.send(())),
            }
        }
    }

    async fn leave(self, line: Option<Line>, closing: Closing) {
        /// Kept back for the connection.
        const CONNECTION: Duration = Duration::from_millis(200);
        let seen = match line {
            Some(mut line) => {
                let acked = line.generation.acked() > 0;
                let closed = line.close(closing.left().saturating_sub(CONNECTION)).await;
                if acked { closed.map_err(Some) } else { Ok(()) }
            }
            None if self.doubtful => Err(None),
            None => Ok(()),
        };
        let limit = closing.left().min(LEAVING);
        let connector = &self.opener.connector;
        // A little longer: it shuts the socket when the time is up.
        let _dropped_with_us =
            tokio::time::timeout(limit + CONNECTION, connector.close(limit)).await;
        let result = seen.map_err(|cause| {
            let detail = format!(
                "subscription {:?}: the server did not answer before the end; messages that were \
                 settled last can come again",
                self.opener.desk.plan.name
            );
            match cause {
                Some(cause) => SourceError::new(detail).with_source(cause),
                None => SourceError::new(detail),
            }
        });
        if let Some(reply) = closing.reply {
            let _nobody_waits = reply.send(result);
        }
    }
}

async fn lost(health: &mut watch::Receiver<Health>) -> AmqpError {
    match health.wait_for(|health| matches!(health, Health::Lost(_))).await.as_deref() {
        Ok(Health::Lost(error)) => error.clone(),
        _ => AmqpError::new(ErrorKind::ConnectionLost, "the connection is closed"),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
