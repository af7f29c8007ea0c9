//! What one `send` costs, against a bare `dyn` call of the same handler.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::time::Instant;

use cqrs_core::{Invocation, Mediator, Middleware, Next, Outcome, RequestHandler, Scope};

use crate::measure::{Unit, compare};

const CALLS: usize = 200_000;

#[derive(cqrs_macros::Command)]
#[cqrs(crate = "cqrs_core", response = String, error = Refused)]
struct Greet {
    name: String,
    fail: bool,
}

type Refused = std::fmt::Error;

/// Both sides run this, so that they differ in dispatch alone.
fn greet(command: Greet) -> Result<String, Refused> {
    if command.fail { Err(std::fmt::Error) } else { Ok(command.name) }
}

struct Greeter;

impl RequestHandler<Greet> for Greeter {
    async fn handle(&self, command: Greet, _scope: &mut Scope) -> Result<String, Refused> {
        greet(command)
    }
}

trait Bare: Send + Sync {
    fn call(
        &self,
        command: Greet,
    ) -> Pin<Box<dyn Future<Output = Result<String, Refused>> + Send + '_>>;
}

impl Bare for Greeter {
    fn call(
        &self,
        command: Greet,
    ) -> Pin<Box<dyn Future<Output = Result<String, Refused>> + Send + '_>> {
        Box::pin(async move { greet(command) })
    }
}

struct PassOn;

impl Middleware for PassOn {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        next.run(call).await
    }
}

fn command(fail: bool) -> Greet {
    Greet { name: black_box("somebody@example.org").to_owned(), fail: black_box(fail) }
}

fn mediator(middlewares: usize) -> Mediator {
    let mut builder = Mediator::builder().handle::<Greet, _>(Greeter);
    for _ in 0..middlewares {
        builder = builder.middleware(PassOn);
    }
    builder.build().expect("one handler")
}

async fn ours(mediator: &Mediator, fail: bool) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        black_box(mediator.send(command(fail)).await.is_ok());
    }
    Unit::NanosPerCall.of(CALLS, start.elapsed())
}

async fn bare(handler: &dyn Bare, fail: bool) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        black_box(handler.call(command(fail)).await.is_ok());
    }
    Unit::NanosPerCall.of(CALLS, start.elapsed())
}

pub(crate) async fn run(rounds: usize) {
    let handler: Box<dyn Bare> = black_box(Box::new(Greeter));
    for (scenario, middlewares, fail) in [
        ("dispatch: send Ok / bare dyn call", 0, false),
        ("dispatch: send Err / bare dyn call", 0, true),
        ("dispatch: send Ok with 3 middlewares / bare dyn call", 3, false),
    ] {
        let mediator = mediator(middlewares);
        let ours = async || ours(&mediator, fail).await;
        let baseline = async || bare(&*handler, fail).await;
        compare(scenario.into(), Unit::NanosPerCall, rounds, ours, baseline).await;
    }
}
