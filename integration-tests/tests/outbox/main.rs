//! Tests of the outbox and the inbox on a real PostgreSQL and a real MariaDB.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod cli;
mod debezium;
mod history;
mod inbox;
mod mysql;
mod mysql_relay;
mod operations;
mod order;
mod relaying;
mod writing;

use cqrs_core::scope::UnitOfWorkFactory;
use cqrs_core::{HandlerError, Scope};
use cqrs_macros::Notification;
use cqrs_outbox::{Outbox, PostgresOutbox, SqlUnitOfWork};
use integration_tests::database::{self, TestDatabase};
use integration_tests::on_each_database;
use integration_tests::postgres::{Schema, execute};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Notification, Serialize, Deserialize)]
#[cqrs(crate = "cqrs_core", topic = "outbox-users", key = "name")]
struct UserAdded {
    name: String,
}

/// A schema with a table `users`.
async fn schema_with_users<DB: TestDatabase>() -> database::Schema<DB> {
    let schema = database::Schema::new().await;
    schema.run("CREATE TABLE users (name text NOT NULL)").await;
    schema
}

/// Inserts a user in the scope's transaction.
async fn insert_user<DB: TestDatabase>(scope: &mut Scope, name: &str) -> Result<(), HandlerError> {
    let unit = scope.unit_of_work::<SqlUnitOfWork<DB>>().await?;
    DB::run(unit.connection(), format!("INSERT INTO users VALUES ('{name}')")).await?;
    Ok(())
}

async fn begin<DB: TestDatabase>(outbox: &Outbox<DB>) -> SqlUnitOfWork<DB> {
    outbox.begin().await.unwrap()
}
