use cqrs::{Command, DomainEvent};

#[derive(Command)]
struct Greet<'a> {
    name: &'a str,
}

#[derive(DomainEvent)]
struct Greeted<'a, T> {
    name: &'a T,
}

fn main() {}
