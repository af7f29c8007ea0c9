//! The number of allocations of a `send`.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use cqrs_core::{Mediator, RequestHandler, Scope};
use cqrs_macros::Command;

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = String, error = String)]
struct Greet {
    name: String,
    fail: bool,
}

struct Greeter;

impl RequestHandler<Greet> for Greeter {
    async fn handle(&self, command: Greet, _scope: &mut Scope) -> Result<String, String> {
        if command.fail { Err(command.name) } else { Ok(command.name) }
    }
}

#[test]
fn a_send_without_middlewares_allocates_at_most_twice() {
    let mediator = Mediator::builder().handle::<Greet, _>(Greeter).build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for fail in [false, true] {
        let command = Greet { name: "somebody".to_owned(), fail };
        let mut answered = None;
        let counted = allocation_counter::measure(|| {
            answered = Some(runtime.block_on(mediator.send(command)));
        });
        assert_eq!(answered.unwrap().is_err(), fail);
        let idle = allocation_counter::measure(|| runtime.block_on(async {}));
        let ours = counted.count_total - idle.count_total;
        assert!((1..=2).contains(&ours), "{ours} allocations for one send");
    }
}
