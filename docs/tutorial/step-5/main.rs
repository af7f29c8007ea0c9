//! Step 5: tests of both services, without a server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

#[derive(Debug, PartialEq, Serialize, Deserialize, Notification)]
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
    async fn handle(&self, event: &OrderPlaced, scope: &mut Scope) -> Result<(), HandlerError> {
        let attempt = scope.get::<Received>().map_or(1, Received::attempt);
        match event.customer.as_str() {
            "Eve" if attempt <= 4 => Err(HandlerError::retryable("the warehouse does not answer")),
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
        .concurrency(8)
        .retry(
            Retry::none()
                .immediate([50, 100, 250].map(Duration::from_millis))
                .delayed([Duration::from_secs(10), Duration::from_secs(60)]),
        );
    Ok(Service::builder(broker).subscribe(orders, events).build()?)
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let broker = MemoryBroker::new();
    shop(broker.clone())?.send(PlaceOrder { customer: "Ada".to_owned(), cents: 1_250 }).await?;
    shipping(broker)?.run().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use cqrs::consume::DeadLetterReason;
    use cqrs_testkit::ServiceTester;

    use super::*;

    fn order(customer: &str, cents: u64) -> PlaceOrder {
        PlaceOrder { customer: customer.to_owned(), cents }
    }

    #[tokio::test]
    async fn order_without_price_publishes_nothing() -> Fallible<()> {
        let broker = MemoryBroker::new();
        let refused = shop(broker.clone())?.send(order("Ada", 0)).await;
        assert!(matches!(refused, Err(SendError::Handler(OrderError::NoPrice))));
        assert!(broker.messages("order_events").is_empty());
        Ok(())
    }

    /// The clock is paused: delays of minutes take no time.
    #[tokio::test(start_paused = true)]
    async fn order_is_shipped_once_the_warehouse_answers() -> Fallible<()> {
        let tester = ServiceTester::new();
        let running = tester.start(shipping(tester.broker())?).await;
        shop(tester.broker())?.send(order("Eve", 1_250)).await?;

        let shipped = tester.handled::<OrderPlaced>(1).await?;
        assert_eq!(shipped[0].customer, "Eve");
        let retried = tester.retried::<OrderPlaced>(1).await?;
        assert_eq!(retried[0].delay, Duration::from_secs(10));
        running.stop().await?;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn order_without_address_is_dead_lettered() -> Fallible<()> {
        let tester = ServiceTester::new();
        let running = tester.start(shipping(tester.broker())?).await;
        tester
            .publish(OrderPlaced { order_id: 7, customer: "nobody".to_owned(), cents: 1 })
            .await?;

        let dead = tester.dead_letters(1).await?;
        assert_eq!(dead[0].letter.reason, DeadLetterReason::Permanent);
        assert_eq!(dead[0].event::<OrderPlaced>()?.order_id, 7);
        running.stop().await?;
        Ok(())
    }
}
