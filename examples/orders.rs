//! The outbox and the inbox: an order and its event are one transaction, a relay publishes the event, and
//! the read model of another service counts it once, even if it arrives twice.
//!
//! `cargo run --example orders`
//!
//! HTTP → command → SQLite (order and outbox) → relay → in-memory broker → read model (with inbox)

use std::error::Error;
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use cqrs::outbox::{Relay, SqliteOutbox, SqliteUnitOfWork};
use cqrs::prelude::*;
use cqrs::{MemoryBroker, MessageBroker};
use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

// ---- the order service: a command, its event, one transaction

#[derive(Deserialize, Command)]
#[cqrs(error = HandlerError)]
struct PlaceOrder {
    customer: String,
    cents: i64,
}

#[derive(Clone, Serialize, Deserialize, Notification)]
#[cqrs(topic = "orders", key = "customer")]
struct OrderPlaced {
    customer: String,
    cents: i64,
}

struct PlaceOrderHandler;

impl RequestHandler<PlaceOrder> for PlaceOrderHandler {
    async fn handle(&self, order: PlaceOrder, scope: &mut Scope) -> Result<(), HandlerError> {
        let unit = scope.unit_of_work::<SqliteUnitOfWork>().await?;
        sqlx::query("INSERT INTO orders (customer, cents) VALUES (?, ?)")
            .bind(&order.customer)
            .bind(order.cents)
            .execute(unit.connection())
            .await?;
        scope.emit(OrderPlaced { customer: order.customer, cents: order.cents });
        match order.cents {
            // The order is written and its event emitted: both are undone.
            ..=0 => Err(HandlerError::permanent("an order has a price")),
            _ => Ok(()),
        }
    }
}

async fn place_order(
    State(mediator): State<Mediator>,
    Json(order): Json<PlaceOrder>,
) -> (StatusCode, String) {
    match mediator.send(order).await {
        Ok(()) => (StatusCode::CREATED, "placed".to_owned()),
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
    }
}

// ---- the billing service: a read model of the events

struct AddToTotal;

impl EventHandler<OrderPlaced> for AddToTotal {
    async fn handle(&self, event: &OrderPlaced, scope: &mut Scope) -> Result<(), HandlerError> {
        // The transaction that has the inbox's mark of this event.
        let unit = scope.unit_of_work::<SqliteUnitOfWork>().await?;
        sqlx::query(
            "INSERT INTO totals (customer, cents) VALUES (?, ?) \
             ON CONFLICT DO UPDATE SET cents = cents + excluded.cents",
        )
        .bind(&event.customer)
        .bind(event.cents)
        .execute(unit.connection())
        .await?;
        println!("  billing: {} owes {} more", event.customer, event.cents);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::temp_dir().join(format!("cqrs-orders-{}.db", std::process::id()));
    let ran = run(SqliteConnectOptions::new().filename(&file)).await;
    std::fs::remove_file(file)?;
    ran
}

async fn run(options: SqliteConnectOptions) -> Result<(), Box<dyn Error>> {
    let options = options.create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePool::connect_with(options).await?;
    sqlx::raw_sql(
        "CREATE TABLE orders (customer TEXT NOT NULL, cents INTEGER NOT NULL); \
         CREATE TABLE totals (customer TEXT PRIMARY KEY, cents INTEGER NOT NULL)",
    )
    .execute(&pool)
    .await?;
    let outbox = SqliteOutbox::new(pool.clone());
    outbox.migrate().await?;
    let broker = MemoryBroker::new(); // or KafkaMessageBroker, or AmqpMessageBroker

    let mediator = Mediator::builder()
        .handle::<PlaceOrder, _>(PlaceOrderHandler)
        .outbox(outbox.clone()) // instead of `broker`
        .build()?;
    let relay = Relay::builder(&outbox, broker.clone()).build()?;
    let stop_relay = relay.handle();
    let relaying = tokio::spawn(relay.run());

    let totals = EventMediator::builder()
        .event::<OrderPlaced, _>(AddToTotal)
        .outbox(outbox.clone())
        .build()?;
    let subscription =
        Subscription::to("orders").group("billing").json::<OrderPlaced>().inbox(outbox.inbox());
    let billing = Service::builder(broker.clone()).subscribe(subscription, totals).build()?;
    let (health, stop_billing) = (billing.health(), billing.stop_handle());
    let handled = || health.subscriptions()[0].counts.handled;
    let billing = tokio::spawn(billing.run_until(pending::<()>()));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let api = Router::new().route("/orders", post(place_order)).with_state(mediator.clone());
    tokio::spawn(axum::serve(listener, api).into_future());

    for order in [("ada", 700), ("eve", -1), ("ada", 300)] {
        let body = format!(r#"{{"customer":"{}","cents":{}}}"#, order.0, order.1);
        println!("POST /orders {body}: {}", post_order(address, &body).await?);
    }
    until(|| handled() == 2).await?;

    println!("the first event arrives again:");
    let copy = broker.messages("orders").swap_remove(0);
    broker.publish(copy).await?;
    until(|| handled() == 3).await?;

    let ada: i64 = sqlx::query_scalar("SELECT cents FROM totals WHERE customer = 'ada'")
        .fetch_one(&pool)
        .await?;
    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&pool).await?;
    stop_billing.stop();
    let counts = billing.await??.subscriptions[0].counts;
    println!("{orders} orders, ada owes {ada}, {} duplicate", counts.duplicates);
    stop_relay.stop();
    let _report = relaying.await?;
    let _left = broker.shutdown(Duration::from_secs(5)).await;
    pool.close().await;
    Ok(())
}

/// Waits for a condition, at most for 30 s.
async fn until(condition: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    Ok(tokio::time::timeout(Duration::from_secs(30), waiting).await?)
}

/// Sends one request; the status and the body of the response.
async fn post_order(address: SocketAddr, body: &str) -> Result<String, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    let status = response.split_whitespace().nth(1).unwrap_or_default();
    Ok(format!("{status} {}", response.lines().last().unwrap_or_default()))
}
