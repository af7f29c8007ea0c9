//! Middlewares: around every request, the first one added outermost. They can look, stop, and answer.
//!
//! `cargo run --example middleware`

use std::convert::Infallible;
use std::error::Error;
use std::time::Instant;

use cqrs::middleware::Failure;
use cqrs::prelude::*;

#[derive(Query)]
#[cqrs(response = String)]
struct Balance {
    account: u32,
}

struct BalanceHandler;

impl RequestHandler<Balance> for BalanceHandler {
    async fn handle(&self, query: Balance, scope: &mut Scope) -> Result<String, Infallible> {
        let user = scope.get::<User>().map_or("nobody", |user| user.0);
        println!("    handler: {user} asks for account {}", query.account);
        Ok(format!("{} EUR", query.account * 10))
    }
}

/// A value that middlewares and handlers of one `send` share.
struct User(&'static str);

struct LogRequests;

impl Middleware for LogRequests {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        let start = Instant::now();
        let outcome = next.run(call).await;
        let how = if outcome.is_ok() { "done" } else { "stopped" };
        println!("    log: {} {how} in {} ms", call.name(), start.elapsed().as_millis());
        outcome
    }
}

struct Authorize;

impl Middleware for Authorize {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        match call.scope().get::<User>() {
            Some(_) => next.run(call).await,
            None => Err(Failure::rejected("log in first")),
        }
    }
}

struct Cache;

impl Middleware for Cache {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        let is_known = call.input::<Balance>().is_some_and(|query| query.account == 7);
        if is_known && call.respond("70 EUR (cached)".to_owned()) {
            println!("    cache: account 7 is known");
            return Ok(());
        }
        next.run(call).await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mediator = Mediator::builder()
        .handle::<Balance, _>(BalanceHandler)
        .middleware(LogRequests)
        .middleware(Authorize)
        .middleware(Cache)
        .build()?;

    println!("without a user:");
    let refused = mediator.send(Balance { account: 4 }).await.expect_err("nobody is logged in");
    println!("  {refused}: {}", refused.source().expect("the reason"));

    for account in [4, 7] {
        println!("account {account}:");
        let scope = Scope::new().with(User("ada"));
        println!("  {}", mediator.send_in(scope, Balance { account }).await?);
    }
    Ok(())
}
