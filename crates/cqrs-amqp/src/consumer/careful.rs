use std::sync::Arc;

use cqrs_core::broker::BoxFuture;
use lapin::message::Delivery;
use lapin::options::BasicGetOptions;

use super::arrived::Arrived;
use super::generation::Generation;
use super::settle::Desk;
use super::suspicion::Suspect;
use crate::connect::topology::short;
use crate::{AmqpError, ErrorKind};

/// The time in which messages are taken one by one, before consumers are started: a message that came
/// back from a killed process is handed out only while nothing else is out, and nothing else is taken
/// until it is settled. So should it kill this process too, no other is counted along.
///
/// It ends with a message without such a past, or an empty queue.
pub(super) struct Careful {
    /// The number of the queue that is looked through.
    queue: usize,
    /// Messages to take one by one in any case: they were sent ahead together with a suspect.
    left: usize,
    at_least: usize,
    getting: Option<BoxFuture<'static, Result<Option<Delivery>, AmqpError>>>,
    suspect: Option<Box<Arrived>>,
    /// Whether a suspect is out.
    alone: bool,
}

/// What the next look found.
pub(super) enum Found {
    Innocent(Box<Arrived>),
    Suspect(Box<Arrived>),
    /// No reason to be careful any more.
    Calm,
}

impl Careful {
    pub(super) fn new(at_least: usize) -> Self {
        let (queue, left, getting, suspect) = (0, at_least, None, None);
        Self { queue, left, at_least, getting, suspect, alone: false }
    }

    /// The same, with a suspect already taken.
    pub(super) fn hold(&mut self, suspect: Box<Arrived>) {
        self.suspect = Some(suspect);
    }

    /// Takes the next message. Cancel safe.
    pub(super) async fn look(
        &mut self,
        channel: &Arc<lapin::Channel>,
        generation: &Arc<Generation>,
        desk: &Desk,
    ) -> Result<Found, AmqpError> {
        while let Some(queue) = desk.plan.queues.get(self.queue) {
            let getting = match &mut self.getting {
                Some(getting) => getting,
                None => self.getting.insert(get(Arc::clone(channel), &queue.name)?),
            };
            let got = getting.await;
            self.getting = None;
            let Some(delivery) = got? else {
                self.next_queue();
                continue;
            };
            self.left = self.left.saturating_sub(1);
            let Some(arrived) = Arrived::new(self.queue, delivery, generation, desk) else {
                continue;
            };
            if arrived.judgement.suspect != Suspect::No {
                return Ok(Found::Suspect(arrived));
            }
            if self.left == 0 {
                self.next_queue();
            }
            return Ok(Found::Innocent(arrived));
        }
        Ok(Found::Calm)
    }

    /// Takes and hands on messages until there is no reason to be careful any more. Cancel safe.
    pub(super) async fn run(
        &mut self,
        channel: &Arc<lapin::Channel>,
        generation: &Arc<Generation>,
        desk: &Desk,
        mut hand_on: impl FnMut(Box<Arrived>),
    ) -> Result<(), AmqpError> {
        loop {
            if self.alone || self.suspect.is_some() {
                generation.fewer_than(1).await;
                self.alone = false;
            }
            if let Some(suspect) = self.suspect.take() {
                let (queue, crashes) = (suspect.queue, suspect.judgement.crashes);
                tracing::info!(
                    subscription = %desk.plan.name, queue, crashes,
                    "a message that came back from a lost consumer is handled alone"
                );
                self.alone = true;
                hand_on(suspect);
                continue;
            }
            // What is taken one by one is not bounded by the prefetch.
            generation.fewer_than(desk.plan.max_unsettled).await;
            match self.look(channel, generation, desk).await? {
                Found::Innocent(arrived) => hand_on(arrived),
                Found::Suspect(arrived) => self.hold(arrived),
                Found::Calm => return Ok(()),
            }
        }
    }

    fn next_queue(&mut self) {
        self.queue += 1;
        self.left = self.at_least;
    }
}

fn get(
    channel: Arc<lapin::Channel>,
    queue: &str,
) -> Result<BoxFuture<'static, Result<Option<Delivery>, AmqpError>>, AmqpError> {
    let name = short(queue)?;
    Ok(Box::pin(async move {
        let got = channel.basic_get(name.clone(), BasicGetOptions::default()).await;
        got.map(|message| message.map(|message| message.delivery)).map_err(|error| {
            let kind = match error.is_amqp_error() {
                true => ErrorKind::Topology,
                false => ErrorKind::ConnectionLost,
            };
            let doing = format!("taking a message from queue {:?}", name.as_str());
            AmqpError::from_lapin(kind, doing, &error)
        })
    }))
}
