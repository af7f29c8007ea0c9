//! `dispatch`: one `send`, against a bare `dyn` call of the same handler.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;

use cqrs_core::{Invocation, Mediator, Middleware, Next, Outcome, RequestHandler, Scope};

use crate::cpu::Stopwatch;
use crate::measure::{Round, Side, Unit};
use crate::peers::Request;
use crate::settings::Settings;

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

pub(crate) fn mediator(middlewares: usize) -> Mediator {
    let mut builder = Mediator::builder().handle::<Greet, _>(Greeter);
    for _ in 0..middlewares {
        builder = builder.middleware(PassOn);
    }
    builder.build().expect("one handler")
}

pub(crate) async fn ours(mediator: &Mediator, calls: usize, fail: bool) -> Round {
    let start = Stopwatch::start();
    for _ in 0..calls {
        black_box(mediator.send(command(fail)).await.is_ok());
    }
    Round::new(Unit::NanosPerCall, calls, start.elapsed())
}

async fn bare(handler: &dyn Bare, calls: usize, fail: bool) -> Round {
    let start = Stopwatch::start();
    for _ in 0..calls {
        black_box(handler.call(command(fail)).await.is_ok());
    }
    Round::new(Unit::NanosPerCall, calls, start.elapsed())
}

pub(crate) async fn run(settings: &Settings) {
    let handler: Box<dyn Bare> = black_box(Box::new(Greeter));
    let calls = settings.messages(200_000);
    for (what, middlewares, fail) in
        [("Ok", 0, false), ("Err", 0, true), ("Ok, 3 middlewares", 3, false)]
    {
        let mediator = mediator(middlewares);
        let mut sides = vec![
            Side::new("bare dyn call", || bare(&*handler, calls, fail)),
            Side::new("ours", || ours(&mediator, calls, fail)),
        ];
        sides.extend(settings.peer_sides(&Request::Dispatch { calls, middlewares, fail }));
        settings.comparison("dispatch", what.to_owned(), Unit::NanosPerCall).run(sides).await;
    }
}
