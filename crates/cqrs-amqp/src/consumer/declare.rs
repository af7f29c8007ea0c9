//! Declares the queues of a subscription on the server; part of the consumer, used by the session and the copies.

use std::time::Duration;

use super::plan::{Plan, QueuePlan};
use crate::config::{DeclareMode, QueueConfig};
use crate::connect::Connection;
use crate::connect::topology::{bind, close, declare_exchange, declare_queue, open};
use crate::error::AmqpError;

/// Limit for one declaration: the nodes of a quorum queue have to agree on it.
const LIMIT: Duration = Duration::from_secs(15);

/// Declares the exchange and all queues of `plan`, each on a short-lived channel, because the server closes the
/// channel of a declaration that it refuses.
pub(super) async fn declare(plan: &Plan, connection: &Connection) -> Result<(), AmqpError> {
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
                answered(Box::pin(ensure(own, connection))).await?;
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

/// Declares `queue` unless one of its name exists, with any properties.
///
/// It is not looked up first: lapin logs the server's 404 as an error, on every first start.
pub(super) async fn ensure(queue: &QueueConfig, connection: &Connection) -> Result<(), AmqpError> {
    const ACCESS_REFUSED: u32 = 403;
    const PRECONDITION_FAILED: u32 = 406;
    match declare_strictly(queue, connection).await {
        // It exists with other properties.
        Err(error) if error.code() == Some(PRECONDITION_FAILED) => Ok(()),
        // To look it up, a user needs no right to configure it.
        Err(error) if error.code() == Some(ACCESS_REFUSED) => {
            let channel = open(connection).await?;
            declare_queue(&channel, queue, true).await.map_err(|_missing| error)?;
            close(channel).await;
            Ok(())
        }
        declared => declared,
    }
}
