//! Step 6: the same two services on Kafka or RabbitMQ, as one program with two roles.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cqrs::amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs::kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Command)]
#[cqrs(response = u64, error = OrderError)]
struct PlaceOrder {
    customer: String,
    cents: u64,
}

#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("an order has a price")]
    NoPrice,
}

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "OrderPlaced", topic = "order_events", key = "customer")]
struct OrderPlaced {
    order_id: u64,
    customer: String,
    cents: u64,
}

#[derive(Default)]
struct PlaceOrderHandler {
    last_id: AtomicU64,
}

impl RequestHandler<PlaceOrder> for PlaceOrderHandler {
    async fn handle(&self, order: PlaceOrder, scope: &mut Scope) -> Result<u64, OrderError> {
        if order.cents == 0 {
            return Err(OrderError::NoPrice);
        }
        let order_id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        scope.emit(OrderPlaced { order_id, customer: order.customer, cents: order.cents });
        Ok(order_id)
    }
}

struct ShipOrder;

impl EventHandler<OrderPlaced> for ShipOrder {
    async fn handle(&self, event: &OrderPlaced, _: &mut Scope) -> Result<(), HandlerError> {
        println!("shipped: order {} to {}", event.order_id, event.customer);
        Ok(())
    }
}

/// The only part that differs from broker to broker. Addresses and passwords come from the environment.
async fn broker() -> Fallible<Arc<dyn Subscribe>> {
    Ok(match env::var("BROKER").as_deref() {
        Ok("kafka") => Arc::new(KafkaMessageBroker::connect(KafkaConfig::from_env()?).await?),
        Ok("amqp") => Arc::new(AmqpMessageBroker::connect(AmqpConfig::from_env()?).await?),
        _ => return Err("set BROKER to kafka or amqp".into()),
    })
}

/// The event's own topic, unless the environment names another.
fn topic() -> String {
    env::var("ORDERS_TOPIC").unwrap_or_else(|_| "order_events".to_owned())
}

async fn place_orders() -> Fallible<()> {
    let broker = broker().await?;
    let shop = Mediator::builder()
        .handle::<PlaceOrder, _>(PlaceOrderHandler::default())
        .broker(Arc::clone(&broker))
        .topic::<OrderPlaced>(topic())
        .build()?;
    for customer in ["Ada", "Bob", "Eve"] {
        let order_id =
            shop.send(PlaceOrder { customer: customer.to_owned(), cents: 1_250 }).await?;
        println!("placed: order {order_id}"); // the broker has confirmed its event
    }
    let left = broker.shutdown(Duration::from_secs(10)).await;
    println!("{} events undelivered", left.undelivered);
    Ok(())
}

async fn ship_orders() -> Fallible<()> {
    let events = EventMediator::builder().event::<OrderPlaced, _>(ShipOrder).build()?;
    let orders = Subscription::to(topic()).group("shipping").json::<OrderPlaced>().concurrency(8);
    let service = Service::builder(broker().await?).subscribe(orders, events).build()?;

    let health = service.health(); // what a readiness probe asks
    tokio::spawn(async move {
        while !health.is_ready() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("ready");
    });
    let report = service.run().await?; // until SIGTERM or Ctrl-C
    println!("stopped: {} shipped", report.subscriptions[0].counts.handled);
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible<()> {
    tracing_subscriber::fmt().with_env_filter("info,lapin=off").init();
    match env::args().nth(1).as_deref() {
        Some("order") => place_orders().await,
        Some("ship") => ship_orders().await,
        _ => Err("usage: orders order | ship".into()),
    }
}
