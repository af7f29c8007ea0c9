//! The cost of a command for its sender: with a plain INSERT, with the outbox, with a direct publish.

use std::time::{Duration, Instant};

use cqrs_core::{HandlerError, Mediator, RequestHandler, Scope};
use cqrs_outbox::PostgresUnitOfWork;
use serde::Serialize;

use super::fixture::{Fixture, key};
use super::table::{Series, Table, percentile};
use crate::measure::Unit;

const FILLING: usize = 200;

#[derive(cqrs_macros::Command)]
#[cqrs(crate = "cqrs_core", error = HandlerError)]
struct PlaceOrder {
    customer: String,
    emits: bool,
}

#[derive(Serialize, cqrs_macros::Notification)]
#[cqrs(crate = "cqrs_core", key = "customer")]
struct OrderPlaced {
    customer: String,
    filling: String,
}

struct PlaceOrderHandler;

impl RequestHandler<PlaceOrder> for PlaceOrderHandler {
    async fn handle(&self, order: PlaceOrder, scope: &mut Scope) -> Result<(), HandlerError> {
        let filling = "x".repeat(FILLING);
        let unit = scope.unit_of_work::<PostgresUnitOfWork>().await?;
        sqlx::query("INSERT INTO orders (customer, filling) VALUES ($1, $2)")
            .bind(&order.customer)
            .bind(&filling)
            .execute(unit.connection())
            .await?;
        if order.emits {
            scope.emit(OrderPlaced { customer: order.customer, filling });
        }
        Ok(())
    }
}

/// A way to run the command, and its figures.
struct Side {
    name: &'static str,
    mediator: Mediator,
    emits: bool,
    rate: Series,
    median: Series,
    p99: Series,
    wal: Series,
}

impl Side {
    fn new(name: &'static str, mediator: Mediator, emits: bool) -> Self {
        let none = Series::default;
        Self { name, mediator, emits, rate: none(), median: none(), p99: none(), wal: none() }
    }
}

pub(super) async fn run(on: &Fixture, commands: usize, rounds: usize) {
    on.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, customer text, filling text)").await;
    for tasks in [1, 16] {
        let mut sides = sides(on).await;
        for round in 0..=rounds {
            for side in &mut sides {
                on.execute("TRUNCATE orders, cqrs_outbox").await;
                let before = on.wal().await;
                let start = Instant::now();
                let latencies = send(side, tasks, commands, on.keys()).await;
                if round == 0 {
                    continue;
                }
                side.rate.push(Unit::MessagesPerSecond.of(tasks * commands, start.elapsed()));
                side.median.push(percentile(&latencies, 0.5));
                side.p99.push(percentile(&latencies, 0.99));
                side.wal.push((on.wal().await - before) / (tasks * commands) as f64);
            }
        }
        let columns =
            ["command with", "commands/s", "against INSERT", "median ms", "p99 ms", "WAL bytes"];
        let mut table = Table::new(&columns);
        for side in &sides {
            let ratio = side.rate.against(&sides[0].rate);
            let (median, p99) = (side.median.text(2), side.p99.text(2));
            table.row([side.name.into(), side.rate.text(0), ratio, median, p99, side.wal.text(0)]);
        }
        table.print(&format!("outbox-relay insert: {tasks} task(s), {rounds} rounds"));
    }
}

async fn sides(on: &Fixture) -> [Side; 3] {
    let builder = || {
        let topic = on.topic.as_str();
        Mediator::builder().handle::<PlaceOrder, _>(PlaceOrderHandler).topic::<OrderPlaced>(topic)
    };
    let plain = builder().unit_of_work(on.outbox.clone()).broker(on.broker().await).build();
    let stored = builder().outbox(on.outbox.clone()).build();
    let direct = builder().unit_of_work(on.outbox.clone()).broker(on.broker().await).build();
    [
        Side::new("a plain INSERT", plain.expect("a mediator"), false),
        Side::new("INSERT and outbox", stored.expect("a mediator"), true),
        Side::new("INSERT, then a direct publish", direct.expect("a mediator"), true),
    ]
}

/// Sends the commands, and returns their latencies in milliseconds.
async fn send(side: &Side, tasks: usize, commands: usize, keys: usize) -> Vec<f64> {
    let task = |task: usize| {
        let (mediator, emits) = (side.mediator.clone(), side.emits);
        tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(commands);
            for number in 0..commands {
                let customer = key(task * commands + number, keys);
                let start = Instant::now();
                mediator.send(PlaceOrder { customer, emits }).await.expect("a command");
                latencies.push(millis(start.elapsed()));
            }
            latencies
        })
    };
    let tasks: Vec<_> = (0..tasks).map(task).collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("a task"));
    }
    latencies
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
