use cqrs::{Command, DomainEvent, Notification, Query};

#[derive(Command)]
#[cqrs(respnse = u64, name = "Add")]
struct Unknown;

#[derive(Query)]
#[cqrs(name = "A", response = u64, name = "B")]
#[cqrs(response = u32)]
struct Twice;

#[derive(DomainEvent)]
#[cqrs(topic = "counts")]
struct OtherDerive;

#[derive(Notification)]
struct OnAField {
    #[cqrs(key)]
    user_id: u64,
}

fn main() {}
