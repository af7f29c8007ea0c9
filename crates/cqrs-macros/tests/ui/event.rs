use cqrs::{DomainEvent, EventMap, Scope};

struct NoEvent;

#[derive(DomainEvent)]
struct Counted;

struct NoHandler;

fn emit(scope: &mut Scope) {
    scope.emit(NoEvent);
}

fn main() {
    let _ = EventMap::new().bind::<Counted, _>(NoHandler);
}
