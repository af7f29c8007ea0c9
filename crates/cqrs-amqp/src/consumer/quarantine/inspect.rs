//! Reads the state of a source's queues by passive declares on short-lived channels; part of the quarantine.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::connect::Connection;
use crate::connect::topology::{close, open};
use crate::consumer::context::SourceContext;
use crate::consumer::plan::QUARANTINE;
use crate::error::{AmqpError, ErrorKind};

/// For each queue, true if its quarantined messages may run on a channel that does not consume yet. Where
/// another consumer may be the active one, only if the queue has no consumer.
pub(in crate::consumer) async fn may_run(
    connection: &Connection,
    context: &SourceContext,
) -> Result<Vec<bool>, AmqpError> {
    let mut may_run = Vec::new();
    for (index, queue) in context.plan.queues.iter().enumerate() {
        if !queue.may_stand_by || context.plan.quarantine_name(index).is_none() {
            may_run.push(!queue.may_stand_by);
            continue;
        }
        // On a channel of its own, which a refusal closes.
        let channel = open(connection).await?;
        match declare_passive(&channel, &queue.name).await {
            Ok(seen) => may_run.push(seen.consumer_count() == 0),
            Err(error) if error.is_amqp_soft_error() => {
                may_run.push(false);
                continue;
            }
            Err(error) => return Err(failed(&queue.name, &error)),
        }
        close(channel).await;
    }
    Ok(may_run)
}

/// True if a quarantine queue that `may_run` has ready messages. One that the server refuses counts as empty.
pub(in crate::consumer) async fn is_waiting(
    connection: &Connection,
    context: &SourceContext,
    may_run: &[bool],
) -> Result<bool, AmqpError> {
    for (index, may_run) in may_run.iter().enumerate() {
        let Some(name) = context.plan.quarantine_name(index) else { continue };
        if context.quarantine.is_off() {
            return Ok(false);
        }
        // On a channel of its own, which a refusal closes.
        let channel = open(connection).await?;
        match ready_messages(&channel, name).await {
            Ok(1..) if *may_run => {
                close(channel).await;
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) if context.quarantine.is_refused(name, &context.plan.name, &error) => {
                continue;
            }
            Err(error) => return Err(failed(name, &error)),
        }
        close(channel).await;
    }
    Ok(false)
}

/// Warns of messages that an earlier start left in a quarantine queue that is switched off now.
pub(in crate::consumer) async fn warn_of_leftovers(
    connection: &Connection,
    context: &SourceContext,
) {
    for queue in context.plan.without_quarantine() {
        let Ok(channel) = open(connection).await else { return };
        let name = format!("{}{QUARANTINE}", queue.name);
        // The queue does not exist, or this user may not read it.
        let Ok(messages) = ready_messages(&channel, &name).await else { continue };
        if messages > 0 {
            tracing::error!(
                subscription = %context.plan.name, queue = name, messages,
                "the quarantine is switched off, and messages of an earlier start are left in its queue: \
                 start once with max_crashes above 0, or move them back to the queue (a shovel)"
            );
        }
        close(channel).await;
    }
}

/// The number of ready messages of a queue.
pub(super) async fn ready_messages(
    channel: &lapin::Channel,
    queue: &str,
) -> Result<u32, lapin::Error> {
    declare_passive(channel, queue).await.map(|queue| queue.message_count())
}

async fn declare_passive(
    channel: &lapin::Channel,
    queue: &str,
) -> Result<lapin::Queue, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await
}

fn failed(queue: &str, error: &lapin::Error) -> AmqpError {
    AmqpError::from_lapin(
        ErrorKind::ConnectionLost,
        format!("reading the state of queue {queue:?}"),
        error,
    )
}
