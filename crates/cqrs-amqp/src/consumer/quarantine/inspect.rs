//! Reads the state of a source's queues by passive declares on short-lived channels; part of the quarantine.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::connect::Connection;
use crate::connect::topology::{close, open};
use crate::consumer::context::SourceContext;
use crate::consumer::plan::QUARANTINE;
use crate::error::{AmqpError, ErrorKind, from_lapin};

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
        match state_of(connection, &queue.name).await? {
            Ok(state) => may_run.push(state.consumer_count() == 0),
            Err(error) if error.is_amqp_soft_error() => may_run.push(false),
            Err(error) => return Err(failed(&queue.name, &error)),
        }
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
        match state_of(connection, name).await? {
            Ok(state) if *may_run && state.message_count() > 0 => return Ok(true),
            Err(error) if !context.quarantine.is_refused(name, &context.plan.name, &error) => {
                return Err(failed(name, &error));
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Warns of messages that an earlier start left in a quarantine queue that is switched off now.
pub(in crate::consumer) async fn warn_of_leftovers(
    connection: &Connection,
    context: &SourceContext,
) {
    for queue in context.plan.without_quarantine() {
        let name = format!("{}{QUARANTINE}", queue.name);
        let Ok(state) = state_of(connection, &name).await else { return };
        // The queue does not exist, or this user may not read it.
        let Ok(messages) = state.map(|state| state.message_count()) else { continue };
        if messages > 0 {
            tracing::error!(
                subscription = %context.plan.name, queue = name, messages,
                "the quarantine is switched off, and messages of an earlier start are left in its queue: \
                 start once with max_crashes above 0, or move them back to the queue (a shovel)"
            );
        }
    }
}

/// The state of a queue, or the server's refusal, on a channel of its own, which a refusal closes.
async fn state_of(
    connection: &Connection,
    queue: &str,
) -> Result<Result<lapin::Queue, lapin::Error>, AmqpError> {
    let channel = open(connection).await?;
    let state = declare_passive(&channel, queue).await;
    if state.is_ok() {
        close(channel).await;
    }
    Ok(state)
}

/// The state of a queue: its ready messages and consumers.
pub(super) async fn declare_passive(
    channel: &lapin::Channel,
    queue: &str,
) -> Result<lapin::Queue, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await
}

fn failed(queue: &str, error: &lapin::Error) -> AmqpError {
    let doing = format!("reading the state of queue {queue:?}");
    from_lapin(ErrorKind::ConnectionLost, doing, error)
}
