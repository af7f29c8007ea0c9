//! Step 2: a domain event with a handler in this process, and a query.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cqrs::prelude::*;

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

/// What has happened. Its handlers run in this process, before `send` returns.
#[derive(DomainEvent)]
struct OrderAccepted {
    cents: u64,
}

/// A query is a request that changes nothing.
#[derive(Query)]
#[cqrs(response = u64)]
struct Revenue;

#[derive(Default)]
struct PlaceOrderHandler {
    last_id: AtomicU64,
}

impl RequestHandler<PlaceOrder> for PlaceOrderHandler {
    async fn handle(&self, order: PlaceOrder, scope: &mut Scope) -> Result<u64, OrderError> {
        if order.cents == 0 {
            return Err(OrderError::NoPrice); // and nothing is emitted
        }
        let order_id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        println!("order {order_id}: {} pays {} cents", order.customer, order.cents);
        scope.emit(OrderAccepted { cents: order.cents });
        Ok(order_id)
    }
}

/// One struct may handle several types. Clones share the sum.
#[derive(Clone, Default)]
struct Accounts {
    cents: Arc<AtomicU64>,
}

impl EventHandler<OrderAccepted> for Accounts {
    async fn handle(&self, event: &OrderAccepted, _: &mut Scope) -> Result<(), HandlerError> {
        self.cents.fetch_add(event.cents, Ordering::Relaxed);
        Ok(())
    }
}

impl RequestHandler<Revenue> for Accounts {
    async fn handle(&self, _: Revenue, _: &mut Scope) -> Result<u64, Infallible> {
        Ok(self.cents.load(Ordering::Relaxed))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let accounts = Accounts::default();
    let shop = Mediator::builder()
        .handle::<PlaceOrder, _>(PlaceOrderHandler::default())
        .handle::<Revenue, _>(accounts.clone())
        .event::<OrderAccepted, _>(accounts)
        .build()?;

    shop.send(PlaceOrder { customer: "Ada".to_owned(), cents: 1_250 }).await?;
    shop.send(PlaceOrder { customer: "Eve".to_owned(), cents: 750 }).await?;
    println!("revenue: {} cents", shop.send(Revenue).await?);
    Ok(())
}
