//! `Mediator::send`, against a bare `dyn` call of the same handler.

use std::convert::Infallible;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;

use cqrs_core::{
    EventHandler, EventMap, HandlerError, Invocation, Mediator, Middleware, Next, Outcome,
    RequestHandler, Scope,
};

use crate::measured::{block_on, runtime};

#[derive(cqrs_macros::Command)]
#[cqrs(crate = "cqrs_core", response = u64, error = Infallible)]
struct Add {
    amount: u64,
    events: usize,
}

#[derive(cqrs_macros::DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct Added(u64);

struct Adder;

impl RequestHandler<Add> for Adder {
    async fn handle(&self, command: Add, scope: &mut Scope) -> Result<u64, Infallible> {
        for _ in 0..command.events {
            scope.emit(Added(command.amount));
        }
        Ok(command.amount + 1)
    }
}

struct Note;

impl EventHandler<Added> for Note {
    async fn handle(&self, event: &Added, _scope: &mut Scope) -> Result<(), HandlerError> {
        black_box(event.0);
        Ok(())
    }
}

struct PassOn;

impl Middleware for PassOn {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        next.run(call).await
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

trait Bare: Send + Sync {
    fn call(&self, command: Add) -> BoxFuture<'_, Result<u64, Infallible>>;
}

impl Bare for Adder {
    fn call(&self, command: Add) -> BoxFuture<'_, Result<u64, Infallible>> {
        Box::pin(async move { Ok(command.amount + 1) })
    }
}

fn command(events: usize) -> Add {
    Add { amount: black_box(1), events: black_box(events) }
}

pub(crate) fn bare(calls: usize) {
    let handler: Box<dyn Bare> = black_box(Box::new(Adder));
    block_on(&runtime(), async {
        for _ in 0..calls {
            let _ = black_box(handler.call(command(0)).await);
        }
    });
}

pub(crate) fn send(calls: usize, middlewares: usize, events: usize) {
    let handlers = EventMap::new().bind::<Added, _>(Note);
    let mut builder = Mediator::builder().handle::<Add, _>(Adder).events(handlers);
    for _ in 0..middlewares {
        builder = builder.middleware(PassOn);
    }
    let mediator = builder.build().expect("a mediator");
    block_on(&runtime(), async {
        for _ in 0..calls {
            let _ = black_box(mediator.send(command(events)).await.expect("added"));
        }
    });
}
