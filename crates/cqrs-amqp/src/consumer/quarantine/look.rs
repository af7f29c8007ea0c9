//! Looks at the queues of a source on channels of its own; part of the quarantine.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::connect::Connection;
use crate::connect::topology::{close, open};
use crate::consumer::context::Desk;
use crate::consumer::plan::QUARANTINE;
use crate::{AmqpError, ErrorKind};

/// For each queue, whether its quarantine may run on a channel that does not consume yet: where another
/// consumer may be the active one, if the queue has no consumer.
pub(in crate::consumer) async fn may_run(
    connection: &Connection,
    desk: &Desk,
) -> Result<Vec<bool>, AmqpError> {
    let mut may_run = Vec::new();
    for (index, queue) in desk.plan.queues.iter().enumerate() {
        if !queue.may_stand_by || desk.plan.quarantine_name(index).is_none() {
            may_run.push(!queue.may_stand_by);
            continue;
        }
        // A channel of its own: a refusal closes it.
        let channel = open(connection).await?;
        match look(&channel, &queue.name).await {
            Ok(seen) => may_run.push(seen.consumer_count() == 0),
            Err(error) if error.is_amqp_soft_error() => {
                may_run.push(false);
                continue;
            }
            Err(error) => return Err(unseen(&queue.name, &error)),
        }
        close(channel).await;
    }
    Ok(may_run)
}

/// Whether a quarantine queue that `may_run` has messages ready. Refused by the server, it counts as empty.
pub(in crate::consumer) async fn is_waiting(
    connection: &Connection,
    desk: &Desk,
    may_run: &[bool],
) -> Result<bool, AmqpError> {
    for (index, may_run) in may_run.iter().enumerate() {
        let Some(name) = desk.plan.quarantine_name(index) else { continue };
        if desk.quarantine.is_off() {
            return Ok(false);
        }
        // A channel of its own: a refusal closes it.
        let channel = open(connection).await?;
        match count(&channel, name).await {
            Ok(1..) if *may_run => {
                close(channel).await;
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) if desk.quarantine.is_refused(name, &desk.plan.name, &error) => continue,
            Err(error) => return Err(unseen(name, &error)),
        }
        close(channel).await;
    }
    Ok(false)
}

/// Warns of messages that an earlier start left in a quarantine queue that is now switched off.
pub(in crate::consumer) async fn warn_of_stranded(connection: &Connection, desk: &Desk) {
    for queue in desk.plan.stranding() {
        let Ok(channel) = open(connection).await else { return };
        let name = format!("{}{QUARANTINE}", queue.name);
        // It does not exist, or this user may not see it.
        let Ok(messages) = count(&channel, &name).await else { continue };
        if messages > 0 {
            tracing::error!(
                subscription = %desk.plan.name, queue = name, messages,
                "the quarantine is switched off, and messages of an earlier start are left in its queue: \
                 start once with max_crashes above 0, or move them back to the queue (a shovel)"
            );
        }
        close(channel).await;
    }
}

/// The messages of a queue that are ready.
pub(super) async fn count(channel: &lapin::Channel, queue: &str) -> Result<u32, lapin::Error> {
    look(channel, queue).await.map(|queue| queue.message_count())
}

async fn look(channel: &lapin::Channel, queue: &str) -> Result<lapin::Queue, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await
}

fn unseen(queue: &str, error: &lapin::Error) -> AmqpError {
    AmqpError::from_lapin(ErrorKind::ConnectionLost, format!("looking at queue {queue:?}"), error)
}
