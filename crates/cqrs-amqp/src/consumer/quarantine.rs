//! The quarantine of a source: messages that may have killed their process run alone, one at a time.
//!
//! A message that came back twice from lost consumers is a suspect. The server counts every message that
//! was prefetched, so that its count proves nothing. The source moves a suspect into the quarantine queue
//! (`{queue}.quarantine`): a confirmed copy, then an ack. From there messages are taken one by one, each only
//! when nothing else is in flight, and nothing else starts until it is settled. So what the server counts
//! *in that queue* are deaths while the message ran alone, over any number of processes, and lost
//! connections, which the source that lost them subtracts.
//!
//! One message per process runs alone at a time. Others wait for it, and it waits for others, for 60 s at
//! most; then the quarantine pauses for five minutes, in which suspects stay in their queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::arrived::Arrived;
use super::copies::{Missing, Published, Target};
use super::copy;
use super::delivery_count::DeliveryCount;
use super::generation::Generation;
use super::settle::Desk;
use crate::connect::topology::short;
use crate::{AmqpError, ErrorKind};

/// The longest that other messages wait for one that runs alone, and that one waits for others.
const PATIENCE: Duration = Duration::from_secs(60);

/// The message of this process that runs alone.
static ALONE: Mutex<()> = Mutex::const_new(());

/// What a source knows of its lost connections and its quarantine, over all channels.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// Connections that the source has lost.
    lost: AtomicU32,
    /// Set while a message of the quarantine queue may be in flight.
    running: AtomicBool,
    /// Connections lost while a message ran alone.
    lost_running: AtomicU32,
    /// Set while the quarantine queue takes no messages: suspects run like others.
    broken: AtomicBool,
}

impl Quarantine {
    /// A channel was lost, and all its deliveries came back.
    pub(super) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        if self.running.swap(false, Ordering::Relaxed) {
            self.lost_running.fetch_add(1, Ordering::Relaxed);
        }
        self.broken.store(false, Ordering::Relaxed);
    }
}

/// Whether a delivery of a consumer has to go through the quarantine.
pub(super) fn is_suspect(arrived: &Arrived, desk: &Desk) -> bool {
    let state = &desk.quarantine;
    desk.plan.queues.get(arrived.queue).is_some_and(|queue| queue.quarantine.is_some())
        && !state.broken.load(Ordering::Relaxed)
        && DeliveryCount::of(&arrived.original).is_suspect(state.lost.load(Ordering::Relaxed))
}

/// One channel's way into the quarantine and out of it.
pub(super) struct Session<H> {
    pub(super) channel: Arc<lapin::Channel>,
    pub(super) generation: Arc<Generation>,
    pub(super) desk: Arc<Desk>,
    pub(super) hand_on: H,
}

impl<H: Fn(Box<Arrived>)> Session<H> {
    /// Quarantines `suspect`, if there is one, and runs what is in the quarantine queues, unless that is to be
    /// `postponed`. Whether it is done: nothing is left, and nothing still runs alone.
    pub(super) async fn run(
        self,
        suspect: Option<Box<Arrived>>,
        postponed: bool,
    ) -> Result<bool, AmqpError> {
        if let Some(suspect) = suspect
            && let Some(suspect) = self.quarantine(suspect).await
        {
            (self.hand_on)(suspect);
            return Ok(!postponed);
        }
        for index in 0..self.desk.plan.queues.len() {
            if postponed || !self.drain(index).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves a suspect into the quarantine queue; gives it back when that takes no messages.
    async fn quarantine(&self, suspect: Box<Arrived>) -> Option<Box<Arrived>> {
        if self.store(&suspect, 0).await {
            return None;
        }
        self.desk.quarantine.broken.store(true, Ordering::Relaxed);
        Some(suspect)
    }

    /// Stores a copy of `arrived` with so many crashes in the quarantine queue, then acks it. Cut off between
    /// the two, both are handled.
    async fn store(&self, arrived: &Arrived, crashes: u32) -> bool {
        let plan = &self.desk.plan;
        let Some(queue) = plan.queues.get(arrived.queue) else { return false };
        let Some(quarantine) = queue.quarantine.clone() else { return false };
        let (name, target) = (&plan.name, Target { queue: quarantine, missing: Missing::Ensure });
        let properties = copy::quarantine(&arrived.original, crashes);
        let stored = self.desk.copies.publish(&target, &properties, &arrived.original.body).await;
        match stored {
            Ok(Published::Stored) => {}
            Ok(Published::TooLarge(error)) | Err(error) => {
                tracing::warn!(
                    subscription = %name, error = %error.chain(),
                    "the quarantine queue takes no message: messages that came back from lost \
                     consumers run like others until the next connection, their crashes are not counted"
                );
                return false;
            }
        }
        // If the channel is gone, the original is redelivered beside its copy.
        let _or_void = arrived.acker.ack(BasicAckOptions::default()).await;
        true
    }

    /// Runs the messages of one quarantine queue alone, one after the other, until it is empty. False: other
    /// messages of the process, or the one that runs alone, took too long.
    async fn drain(&self, index: usize) -> Result<bool, AmqpError> {
        let (plan, state) = (&self.desk.plan, &self.desk.quarantine);
        let Some(name) = plan.quarantine_name(index) else { return Ok(true) };
        while waiting(&self.channel, name).await? > 0 {
            let end = Instant::now() + PATIENCE;
            let Ok(_alone) = timeout_at(end, ALONE.lock()).await else { return Ok(false) };
            if timeout_at(end, self.desk.handed_on.none()).await.is_err() {
                return Ok(false);
            }
            // From here on the server may have handed out a message, whether it arrives here or not.
            state.running.store(true, Ordering::Relaxed);
            let got = get(&self.channel, name).await?;
            let got = got.and_then(|got| Arrived::new(index, got, &self.generation, &self.desk));
            let Some(mut arrived) = got else {
                state.running.store(false, Ordering::Relaxed);
                return Ok(true);
            };
            let count = DeliveryCount::of(&arrived.original);
            let lost = state.lost_running.swap(0, Ordering::Relaxed);
            arrived.crashes = count.crashes(lost);
            // The copy starts with a count of 0: so a later process does not count the loss either.
            if lost > 0 && count.returned > 0 && self.store(&arrived, arrived.crashes).await {
                continue;
            }
            arrived.redelivered = true;
            tracing::info!(
                subscription = %plan.name, queue = name, crashes = arrived.crashes,
                "a message that came back from lost consumers runs alone"
            );
            (self.hand_on)(arrived);
            if timeout(PATIENCE, self.desk.handed_on.none()).await.is_err() {
                return Ok(false);
            }
            state.running.store(false, Ordering::Relaxed);
        }
        Ok(true)
    }
}

/// Whether a quarantine queue of `desk` has messages ready.
pub(super) async fn is_waiting(channel: &lapin::Channel, desk: &Desk) -> Result<bool, AmqpError> {
    for index in 0..desk.plan.queues.len() {
        if let Some(name) = desk.plan.quarantine_name(index)
            && waiting(channel, name).await? > 0
        {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn waiting(channel: &lapin::Channel, queue: &str) -> Result<u32, AmqpError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(queue)?, options, FieldTable::default()).await;
    declared.map(|queue| queue.message_count()).map_err(|error| failed("looking at", queue, &error))
}

async fn get(channel: &lapin::Channel, queue: &str) -> Result<Option<Delivery>, AmqpError> {
    let got = channel.basic_get(short(queue)?, BasicGetOptions::default()).await;
    got.map(|message| message.map(|message| message.delivery))
        .map_err(|error| failed("taking a message from", queue, &error))
}

fn failed(doing: &str, queue: &str, error: &lapin::Error) -> AmqpError {
    let kind = match error.is_amqp_error() {
        true => ErrorKind::Topology,
        false => ErrorKind::ConnectionLost,
    };
    AmqpError::from_lapin(kind, format!("{doing} queue {queue:?}"), error)
}
