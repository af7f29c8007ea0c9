//! Step 4: a second service consumes the event, with retries and dead letters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cqrs::consume::DeadLetter;
use cqrs::{MemoryBroker, prelude::*};
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
        println!("order {order_id}: {} pays {} cents", order.customer, order.cents);
        scope.emit(OrderPlaced { order_id, customer: order.customer, cents: order.cents });
        Ok(order_id)
    }
}

/// Ships what was ordered.
struct ShipOrder;

impl EventHandler<OrderPlaced> for ShipOrder {
    async fn handle(&self, event: &OrderPlaced, scope: &mut Scope) -> Result<(), HandlerError> {
        let attempt = scope.get::<Received>().map_or(1, Received::attempt);
        match event.customer.as_str() {
            // Retried after 100 ms. The order of Eve waits; the orders of others do not.
            "Eve" if attempt == 1 => Err(HandlerError::retryable("the warehouse does not answer")),
            // A retry cannot help: a dead letter.
            "nobody" => Err("the customer has no address").permanent(),
            customer => {
                println!("shipped: order {} to {customer}, attempt {attempt}", event.order_id);
                Ok(())
            }
        }
    }
}

fn shop(broker: impl MessageBroker) -> Fallible<Mediator> {
    Ok(Mediator::builder()
        .handle::<PlaceOrder, _>(PlaceOrderHandler::default())
        .broker(broker)
        .build()?)
}

fn shipping(broker: impl Subscribe) -> Fallible<Service> {
    let events = EventMediator::builder().event::<OrderPlaced, _>(ShipOrder).build()?;
    let orders = Subscription::to("order_events")
        .group("shipping")
        .json::<OrderPlaced>()
        .concurrency(8) // in parallel, in order per customer
        .retry(Retry::none().immediate([Duration::from_millis(100)]));
    Ok(Service::builder(broker).subscribe(orders, events).build()?)
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let broker = MemoryBroker::new();
    let shop = shop(broker.clone())?;
    for customer in ["Ada", "Eve", "nobody"] {
        shop.send(PlaceOrder { customer: customer.to_owned(), cents: 1_250 }).await?;
    }

    let report = shipping(broker.clone())?.run().await?; // until Ctrl-C
    let counts = report.subscriptions[0].counts;
    println!("stopped: {} handled, {} dead-lettered", counts.handled, counts.dead_lettered);
    for message in broker.messages("order_events.shipping.dead") {
        let letter = DeadLetter::from_headers(&message.headers)?;
        println!("dead letter: {} ({})", letter.error, letter.reason);
    }
    Ok(())
}
