//! Tests of the outbox and the inbox on a real PostgreSQL.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod cli;
mod debezium;
mod inbox;
mod operations;
mod relaying;
mod writing;

use cqrs_core::scope::UnitOfWorkFactory;
use cqrs_core::{HandlerError, Scope};
use cqrs_macros::Notification;
use cqrs_outbox::{PostgresOutbox, PostgresUnitOfWork};
use integration_tests::postgres::{Schema, execute};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Notification, Serialize, Deserialize)]
#[cqrs(crate = "cqrs_core", topic = "outbox-users", key = "name")]
struct UserAdded {
    name: String,
}

/// A schema with a table `users`.
async fn schema_with_users() -> Schema {
    let schema = Schema::new().await;
    execute(&schema.pool, "CREATE TABLE users (name text NOT NULL)".to_owned()).await;
    schema
}

/// Inserts a user in the scope's transaction.
async fn insert_user(scope: &mut Scope, name: &str) -> Result<(), HandlerError> {
    let unit = scope.unit_of_work::<PostgresUnitOfWork>().await?;
    let query = sqlx::query("INSERT INTO users VALUES ($1)").bind(name);
    query.execute(unit.connection()).await?;
    Ok(())
}

async fn begin(outbox: &PostgresOutbox) -> PostgresUnitOfWork {
    outbox.begin().await.unwrap()
}
