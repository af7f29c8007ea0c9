//! Step 1: a command, its handler, and the mediator between them.

use cqrs::prelude::*;

/// What can be asked of the service. It has one response type and one error type.
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

/// A handler holds what it depends on. This one needs nothing yet.
struct PlaceOrderHandler;

impl RequestHandler<PlaceOrder> for PlaceOrderHandler {
    async fn handle(&self, order: PlaceOrder, _: &mut Scope) -> Result<u64, OrderError> {
        if order.cents == 0 {
            return Err(OrderError::NoPrice);
        }
        println!("order 1: {} pays {} cents", order.customer, order.cents);
        Ok(1)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shop = Mediator::builder().handle::<PlaceOrder, _>(PlaceOrderHandler).build()?;

    let order_id = shop.send(PlaceOrder { customer: "Ada".to_owned(), cents: 1_250 }).await?;
    println!("placed: {order_id}");

    match shop.send(PlaceOrder { customer: "Bob".to_owned(), cents: 0 }).await {
        Err(SendError::Handler(OrderError::NoPrice)) => println!("refused: an order has a price"),
        other => println!("unexpected: {other:?}"),
    }
    Ok(())
}
