//! Declares the queues of a subscription on the server; part of the consumer, used by the session and the copies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::plan::{Plan, QueuePlan};
use crate::config::{DeclareMode, QueueConfig};
use crate::connect::Connection;
use crate::connect::topology::{bind, close, declare_exchange, declare_queue, open};
use crate::error::AmqpError;

/// Limit for one declaration: the nodes of a quorum queue have to agree on it.
const LIMIT: Duration = Duration::from_secs(15);

/// Declares the exchange and all queues of the plan, each on a short-lived channel, because the server closes the
/// channel of a declaration that it refuses. `look_up_first` is set once it refused a queue that exists.
pub(super) async fn declare(
    plan: &Plan,
    look_up_first: &AtomicBool,
    connection: &Connection,
) -> Result<(), AmqpError> {
    let looks_up_first = look_up_first.load(Ordering::Relaxed);
    let passive = match plan.mode {
        DeclareMode::None => return Ok(()),
        DeclareMode::Passive => true,
        DeclareMode::Declare | DeclareMode::PythonCompatible => false,
    };
    let answered = |request| connection.answered(LIMIT, request);
    answered(Box::pin(async {
        let channel = open(connection).await?;
        declare_exchange(&channel, &plan.exchange, passive).await?;
        close(channel).await;
        Ok(())
    }) as futures_util::future::BoxFuture<'_, _>)
    .await?;
    for queue in &plan.queues {
        answered(Box::pin(declare_source(plan, queue, connection, passive))).await?;
        if plan.declares_own {
            for delay in queue.retry.delays() {
                let retry = queue.retry_queue(*delay);
                answered(Box::pin(async move { declare_strictly(&retry, connection).await }))
                    .await?;
            }
            for own in queue.dead.iter().chain(&queue.quarantine) {
                let ensuring = async {
                    if ensure(own, connection, looks_up_first).await? == Ensured::Refused {
                        look_up_first.store(true, Ordering::Relaxed);
                    }
                    Ok(())
                };
                answered(Box::pin(ensuring)).await?;
            }
        }
    }
    Ok(())
}

async fn declare_source(
    plan: &Plan,
    queue: &QueuePlan,
    connection: &Connection,
    passive: bool,
) -> Result<(), AmqpError> {
    let channel = open(connection).await?;
    declare_queue(&channel, &queue.config, passive).await?;
    // The default exchange binds every queue by its name and accepts no other binding.
    if !passive && !plan.exchange.name.is_empty() {
        for key in &queue.routing_keys {
            bind(&channel, &queue.name, &plan.exchange.name, key).await?;
        }
    }
    close(channel).await;
    Ok(())
}

/// Declares `queue` with exactly its properties.
pub(super) async fn declare_strictly(
    queue: &QueueConfig,
    connection: &Connection,
) -> Result<(), AmqpError> {
    let channel = open(connection).await?;
    declare_queue(&channel, queue, false).await?;
    close(channel).await;
    Ok(())
}

/// The outcome for a queue that exists now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ensured {
    Exists,
    /// It exists, but the server refused to declare it.
    Refused,
}

/// Declares `queue` unless one of its name exists, with any properties.
///
/// lapin logs each refusal of the server as an error. So it is looked up first only if its declaration was refused
/// before.
pub(super) async fn ensure(
    queue: &QueueConfig,
    connection: &Connection,
    look_up_first: bool,
) -> Result<Ensured, AmqpError> {
    const ACCESS_REFUSED: u32 = 403;
    const PRECONDITION_FAILED: u32 = 406;
    if look_up_first && exists(queue, connection).await? {
        return Ok(Ensured::Exists);
    }
    match declare_strictly(queue, connection).await {
        // It may exist: with other properties, or without the right to configure it, which a look-up does not
        // need. The virtual host's limit of queues is a 406, too.
        Err(error) if matches!(error.code(), Some(ACCESS_REFUSED | PRECONDITION_FAILED)) => {
            match exists(queue, connection).await? {
                true => Ok(Ensured::Refused),
                false => Err(error),
            }
        }
        declared => declared.map(|()| Ensured::Exists),
    }
}

/// True if a queue of that name exists.
async fn exists(queue: &QueueConfig, connection: &Connection) -> Result<bool, AmqpError> {
    const NOT_FOUND: u32 = 404;
    let channel = open(connection).await?;
    match declare_queue(&channel, queue, true).await {
        Ok(()) => close(channel).await,
        Err(error) if error.code() == Some(NOT_FOUND) => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(true)
}
