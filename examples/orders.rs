//! The outbox and the inbox: an order and its event are one transaction, a relay publishes the event, and
//! the read model of another service counts it once, even if it arrives twice.
//!
//! ```text
//! cargo run --example orders
//! cargo run --example orders --features kafka -- --database postgres://cqrs:cqrs@localhost/cqrs --broker kafka
//! ```
//!
//! HTTP → command → SQLite or PostgreSQL (order and outbox) → relay → broker → read model (with inbox)
//!
//! It works in a file or a schema of its own, and removes it at the end. `./scripts/brokers up` starts the servers;
//! `KAFKA_BOOTSTRAP_SERVERS` says where Kafka is, if not on this machine.

use std::env;
use std::error::Error;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use cqrs::outbox::{Outbox, Relay, RelayDatabase, SqlUnitOfWork};
use cqrs::prelude::*;
use cqrs::{MemoryBroker, Message};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{AssertSqlSafe, PgPool, Pool, Postgres, Sqlite, SqlitePool};
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

/// On any database. A service with one of them has no parameter: its unit of work is a `PostgresUnitOfWork`, say.
struct PlaceOrderHandler<DB>(PhantomData<DB>);

impl<DB: Statements> RequestHandler<PlaceOrder> for PlaceOrderHandler<DB> {
    async fn handle(&self, order: PlaceOrder, scope: &mut Scope) -> Result<(), HandlerError> {
        let unit = scope.unit_of_work::<SqlUnitOfWork<DB>>().await?;
        DB::add_order(unit.connection(), &order).await?;
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

/// Keeps a copy of the first message.
struct AddToTotal<DB>(Arc<OnceLock<Message>>, PhantomData<DB>);

impl<DB: Statements> EventHandler<OrderPlaced> for AddToTotal<DB> {
    async fn handle(&self, event: &OrderPlaced, scope: &mut Scope) -> Result<(), HandlerError> {
        if let Some(received) = scope.get::<Received>() {
            let mut copy = Message::new(received.topic.to_string(), received.bytes());
            copy.key = received.key.clone();
            self.0.get_or_init(|| copy);
        }
        // The transaction that has the inbox's mark of this event.
        let unit = scope.unit_of_work::<SqlUnitOfWork<DB>>().await?;
        DB::add_to_total(unit.connection(), event).await?;
        println!("  billing: {} owes {} more", event.customer, event.cents);
        Ok(())
    }
}

// ---- the statements of both services

trait Statements: RelayDatabase + Sync {
    async fn create_tables(pool: &Pool<Self>) -> sqlx::Result<()>;

    fn add_order(
        connection: &mut Self::Connection,
        order: &PlaceOrder,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    fn add_to_total(
        connection: &mut Self::Connection,
        event: &OrderPlaced,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// The number of orders, and the cents that a customer owes.
    async fn figures(pool: &Pool<Self>, customer: &str) -> sqlx::Result<(i64, i64)>;
}

macro_rules! statements {
    ($($database:ty),*) => {$(
        impl Statements for $database {
            async fn create_tables(pool: &Pool<Self>) -> sqlx::Result<()> {
                let sql = "CREATE TABLE orders (customer TEXT NOT NULL, cents BIGINT NOT NULL); \
                           CREATE TABLE totals (customer TEXT PRIMARY KEY, cents BIGINT NOT NULL)";
                sqlx::raw_sql(sql).execute(pool).await.map(drop)
            }

            async fn add_order(
                connection: &mut Self::Connection,
                order: &PlaceOrder,
            ) -> sqlx::Result<()> {
                let sql = "INSERT INTO orders (customer, cents) VALUES ($1, $2)";
                let query = sqlx::query(sql).bind(&order.customer).bind(order.cents);
                query.execute(connection).await.map(drop)
            }

            async fn add_to_total(
                connection: &mut Self::Connection,
                event: &OrderPlaced,
            ) -> sqlx::Result<()> {
                let sql = "INSERT INTO totals (customer, cents) VALUES ($1, $2) \
                           ON CONFLICT (customer) DO UPDATE SET cents = totals.cents + excluded.cents";
                let query = sqlx::query(sql).bind(&event.customer).bind(event.cents);
                query.execute(connection).await.map(drop)
            }

            async fn figures(pool: &Pool<Self>, customer: &str) -> sqlx::Result<(i64, i64)> {
                let sql = "SELECT (SELECT count(*) FROM orders), \
                           (SELECT cents FROM totals WHERE customer = $1)";
                sqlx::query_as(sql).bind(customer).fetch_one(pool).await
            }
        }
    )*};
}

statements!(Sqlite, Postgres);

// ---- both services and the relay, in one process

async fn run<DB: Statements>(
    pool: Pool<DB>,
    broker: Arc<dyn Subscribe>,
) -> Result<(), Box<dyn Error>> {
    DB::create_tables(&pool).await?;
    let outbox = Outbox::<DB>::new(pool.clone());
    outbox.migrate().await?;
    let topic = env::var("TOPIC").unwrap_or_else(|_| "orders".to_owned());

    let first = Arc::new(OnceLock::new());
    let totals = EventMediator::builder()
        .event::<OrderPlaced, _>(AddToTotal::<DB>(Arc::clone(&first), PhantomData))
        .outbox(outbox.clone())
        .build()?;
    let subscription =
        Subscription::to(&*topic).group("billing").json::<OrderPlaced>().inbox(outbox.inbox());
    let billing = Service::builder(Arc::clone(&broker)).subscribe(subscription, totals).build()?;
    let (health, stop_billing) = (billing.health(), billing.stop_handle());
    let handled = || health.subscriptions()[0].counts.handled;
    let billing = tokio::spawn(billing.run());
    // Kafka makes the topic with the first event. Until then the subscription is not ready.
    let _in_time = until(10, || health.is_ready()).await;

    let mediator = Mediator::builder()
        .handle::<PlaceOrder, _>(PlaceOrderHandler::<DB>(PhantomData))
        .outbox(outbox.clone()) // instead of `broker`
        .topic::<OrderPlaced>(topic)
        .build()?;
    let relay = Relay::builder(&outbox, Arc::clone(&broker)).build()?;
    let stop_relay = relay.handle();
    let relaying = tokio::spawn(relay.run());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let api = Router::new().route("/orders", post(place_order)).with_state(mediator.clone());
    tokio::spawn(axum::serve(listener, api).into_future());

    for order in [("ada", 700), ("eve", -1), ("ada", 300)] {
        let body = format!(r#"{{"customer":"{}","cents":{}}}"#, order.0, order.1);
        println!("POST /orders {body}: {}", post_order(address, &body).await?);
    }
    until(60, || handled() == 2).await?;

    println!("the first event arrives again:");
    let copy = first.get().ok_or("no event has arrived")?;
    broker.publish(copy.clone()).await?;
    until(60, || handled() == 3).await?;

    let (orders, ada) = DB::figures(&pool, "ada").await?;
    stop_billing.stop();
    let counts = billing.await??.subscriptions[0].counts;
    println!("{orders} orders, ada owes {ada}, {} duplicate", counts.duplicates);
    stop_relay.stop();
    let _report = relaying.await?;
    let _left = broker.shutdown(Duration::from_secs(5)).await;
    pool.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut database, mut broker) = (None, None);
    let mut arguments = env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = match option.as_str() {
            "--database" => &mut database,
            "--broker" => &mut broker,
            _ => return Err("usage: [--database postgres://..] [--broker memory | kafka]".into()),
        };
        *value = Some(arguments.next().ok_or_else(|| format!("{option} has no value"))?);
    }
    let broker = connect(broker.as_deref().unwrap_or("memory")).await?;
    match database {
        None => on_sqlite(broker).await,
        Some(url) => on_postgres(&url, broker).await,
    }
}

/// In a temporary file.
async fn on_sqlite(broker: Arc<dyn Subscribe>) -> Result<(), Box<dyn Error>> {
    let file = env::temp_dir().join(format!("cqrs-orders-{}.db", std::process::id()));
    let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    let pool = SqlitePool::connect_with(options.journal_mode(SqliteJournalMode::Wal)).await?;
    let ran = run(pool, broker).await;
    std::fs::remove_file(file)?;
    ran
}

/// In a schema of its own.
async fn on_postgres(url: &str, broker: Arc<dyn Subscribe>) -> Result<(), Box<dyn Error>> {
    let schema = format!("cqrs_orders_{}", std::process::id());
    let options: PgConnectOptions = url.parse()?;
    let admin = PgPool::connect_with(options.clone()).await?;
    let change = async |sql| sqlx::raw_sql(AssertSqlSafe(sql)).execute(&admin).await;
    change(format!("CREATE SCHEMA {schema}")).await?;
    let pool = PgPool::connect_with(options.options([("search_path", &schema)])).await?;
    let ran = run(pool, broker).await;
    change(format!("DROP SCHEMA {schema} CASCADE")).await?;
    ran
}

async fn connect(broker: &str) -> Result<Arc<dyn Subscribe>, Box<dyn Error>> {
    let broker: Arc<dyn Subscribe> = match broker {
        "memory" => Arc::new(MemoryBroker::new()),
        #[cfg(feature = "kafka")]
        "kafka" => {
            use cqrs::kafka::{KafkaConfig, KafkaMessageBroker};
            let servers = env::var("KAFKA_BOOTSTRAP_SERVERS");
            let servers = servers.unwrap_or_else(|_| "localhost:9092".to_owned());
            Arc::new(KafkaMessageBroker::connect(KafkaConfig::new([servers])).await?)
        }
        _ => return Err("--broker is `memory`, or `kafka` with the feature `kafka`".into()),
    };
    Ok(broker)
}

/// Waits for a condition, at most for so many seconds.
async fn until(seconds: u64, condition: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    Ok(tokio::time::timeout(Duration::from_secs(seconds), waiting).await?)
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
