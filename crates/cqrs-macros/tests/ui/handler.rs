use std::convert::Infallible;

use cqrs::{Command, Mediator, RequestHandler, Scope};

#[derive(Command)]
#[cqrs(response = u64)]
struct Count;

struct WrongResponse;

impl RequestHandler<Count> for WrongResponse {
    async fn handle(&self, _: Count, _: &mut Scope) -> Result<String, Infallible> {
        Ok(String::new())
    }
}

struct NoHandler;

struct NoRequest;

fn main() {
    let _ = Mediator::builder().handle::<Count, _>(NoHandler);
    let _ = Mediator::builder().handle::<NoRequest, _>(NoHandler);
}
