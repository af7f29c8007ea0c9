//! Step 3: a notification that is published to a broker.

use std::sync::atomic::{AtomicU64, Ordering};

use cqrs::{MemoryBroker, prelude::*};
use serde::{Deserialize, Serialize};

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

/// Goes to other services, on the topic `order_events`. Events of one customer keep their order.
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
            return Err(OrderError::NoPrice); // and nothing is published
        }
        let order_id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        println!("order {order_id}: {} pays {} cents", order.customer, order.cents);
        scope.emit(OrderPlaced { order_id, customer: order.customer, cents: order.cents });
        Ok(order_id)
    }
}

fn shop(broker: impl MessageBroker) -> Result<Mediator, Box<dyn std::error::Error>> {
    Ok(Mediator::builder()
        .handle::<PlaceOrder, _>(PlaceOrderHandler::default())
        .broker(broker)
        .build()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = MemoryBroker::new();
    let shop = shop(broker.clone())?;

    // `Ok`: the broker has confirmed the event.
    shop.send(PlaceOrder { customer: "Ada".to_owned(), cents: 1_250 }).await?;

    for message in broker.messages("order_events") {
        println!("published: {}", String::from_utf8_lossy(&message.body));
    }
    Ok(())
}
