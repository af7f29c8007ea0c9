//! A unit of work: what a command and its domain events write becomes visible as a whole, or not at
//! all; notifications go out after the commit.
//!
//! `cargo run --example unit_of_work`

use std::error::Error;
use std::sync::{Arc, Mutex};

use cqrs::prelude::*;
use cqrs::scope::{CommitError, UnitOfWorkFactory};
use cqrs::{MemoryBroker, UnitOfWork};
use serde::Serialize;

type BoxError = Box<dyn Error + Send + Sync>;

/// Stands for a connection pool.
#[derive(Clone, Default)]
struct Database {
    rows: Arc<Mutex<Vec<String>>>,
}

/// Stands for a database transaction. Dropping it rolls back.
struct Transaction {
    database: Database,
    writes: Vec<String>,
}

impl UnitOfWorkFactory for Database {
    type Unit = Transaction;

    async fn begin(&self) -> Result<Transaction, BoxError> {
        println!("  begin");
        Ok(Transaction { database: self.clone(), writes: Vec::new() })
    }
}

impl UnitOfWork for Transaction {
    async fn commit(self) -> Result<(), CommitError> {
        println!("  commit {:?}", self.writes);
        let mut rows =
            self.database.rows.lock().map_err(|_| CommitError::failed("the database is broken"))?;
        rows.extend(self.writes);
        Ok(())
    }

    async fn rollback(self) -> Result<(), BoxError> {
        println!("  roll back {:?}", self.writes);
        Ok(())
    }
}

#[derive(Command)]
#[cqrs(error = String)]
struct Transfer {
    cents: u64,
}

#[derive(DomainEvent)]
struct Transferred {
    cents: u64,
}

#[derive(Serialize, Notification)]
#[cqrs(topic = "bank")]
struct MoneyMoved {
    cents: u64,
}

struct TransferHandler;

impl RequestHandler<Transfer> for TransferHandler {
    async fn handle(&self, Transfer { cents }: Transfer, scope: &mut Scope) -> Result<(), String> {
        let transaction =
            scope.unit_of_work::<Transaction>().await.map_err(|error| error.to_string())?;
        transaction.writes.push(format!("account: -{cents}"));
        scope.emit(Transferred { cents });
        scope.emit(MoneyMoved { cents });
        Ok(())
    }
}

struct Audit;

impl EventHandler<Transferred> for Audit {
    async fn handle(&self, event: &Transferred, scope: &mut Scope) -> Result<(), HandlerError> {
        // The same transaction as the command's.
        scope.unit_of_work::<Transaction>().await?.writes.push(format!("audit: {}", event.cents));
        match event.cents {
            0..=1_000 => Ok(()),
            _ => Err(HandlerError::permanent("more than 10.00 needs a second pair of eyes")),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (database, broker) = (Database::default(), MemoryBroker::new());
    let mediator = Mediator::builder()
        .handle::<Transfer, _>(TransferHandler)
        .event::<Transferred, _>(Audit)
        .unit_of_work(database.clone())
        .broker(broker.clone())
        .build()?;

    println!("transfer of 5.00:");
    mediator.send(Transfer { cents: 500 }).await?;

    println!("transfer of 50.00:");
    let refused = mediator.send(Transfer { cents: 5_000 }).await.expect_err("the audit refuses");
    println!("  {refused}");

    let rows = database.rows.lock().map_err(|_| "the database is broken")?.len();
    println!("{rows} rows are visible, {} notification is out", broker.messages("bank").len());
    Ok(())
}
