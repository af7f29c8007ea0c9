//! Domain events: any number of handlers, follow-ups breadth first, and what a failure does.
//!
//! `cargo run --example domain_events`

use std::convert::Infallible;
use std::error::Error;

use cqrs::prelude::*;
use cqrs::{EventMap, OnEventFailure};

#[derive(Command)]
struct PlaceOrder {
    order: u32,
    items: u32,
}

#[derive(DomainEvent)]
struct OrderPlaced {
    order: u32,
    items: u32,
}

#[derive(DomainEvent)]
struct StockReserved {
    order: u32,
}

struct PlaceOrderHandler;

impl RequestHandler<PlaceOrder> for PlaceOrderHandler {
    async fn handle(&self, command: PlaceOrder, scope: &mut Scope) -> Result<(), Infallible> {
        scope.emit(OrderPlaced { order: command.order, items: command.items });
        Ok(())
    }
}

struct ReserveStock {
    left: u32,
}

impl EventHandler<OrderPlaced> for ReserveStock {
    async fn handle(&self, event: &OrderPlaced, scope: &mut Scope) -> Result<(), HandlerError> {
        if event.items > self.left {
            // Trying again will not help: say so.
            return Err(HandlerError::permanent("not enough in stock"));
        }
        println!("  stock: reserved {} for order {}", event.items, event.order);
        scope.emit(StockReserved { order: event.order }); // a follow-up, handled in the next round
        Ok(())
    }
}

struct WriteInvoice;

impl EventHandler<OrderPlaced> for WriteInvoice {
    async fn handle(&self, event: &OrderPlaced, _scope: &mut Scope) -> Result<(), HandlerError> {
        println!("  invoice: written for order {}", event.order);
        Ok(())
    }
}

struct Pack;

impl EventHandler<StockReserved> for Pack {
    async fn handle(&self, event: &StockReserved, _scope: &mut Scope) -> Result<(), HandlerError> {
        println!("  packing: order {}", event.order);
        Ok(())
    }
}

/// A module of an application can bring its own part of the map.
fn warehouse() -> EventMap {
    EventMap::new().bind::<OrderPlaced, _>(ReserveStock { left: 10 }).bind::<StockReserved, _>(Pack)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mediator = |policy| {
        Mediator::builder()
            .handle::<PlaceOrder, _>(PlaceOrderHandler)
            .events(warehouse())
            .event::<OrderPlaced, _>(WriteInvoice)
            .on_event_failure(policy)
            .build()
    };

    println!("an order of 3:");
    mediator(OnEventFailure::Fail)?.send(PlaceOrder { order: 1, items: 3 }).await?;

    println!("an order of 99, where a failing handler fails the command (the default):");
    let failed = mediator(OnEventFailure::Fail)?.send(PlaceOrder { order: 2, items: 99 }).await;
    println!("  {}", failed.expect_err("there are 10 left"));

    println!("the same, where failures are logged and the others go on:");
    mediator(OnEventFailure::Log)?.send(PlaceOrder { order: 3, items: 99 }).await?;
    Ok(())
}
