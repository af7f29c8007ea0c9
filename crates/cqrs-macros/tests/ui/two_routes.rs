use cqrs::{DomainEvent, Notification};

#[derive(serde::Serialize, DomainEvent, Notification)]
struct Both {
    user_id: u64,
}

#[derive(serde::Serialize, DomainEvent, Notification)]
#[cqrs(topic = "user_events")]
struct BothWithATopic {
    user_id: u64,
}

fn main() {}
