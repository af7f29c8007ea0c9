//! Tests of the derives through the traits and a mediator.

mod events;
mod handler_errors;
mod requests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs::DevnullMessageBroker;
use cqrs::prelude::*;
use serde::Serialize;

#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

#[derive(Command)]
#[cqrs(response = u64, error = Refused)]
struct SignUp {
    name: String,
}

#[derive(DomainEvent)]
struct UserCounted;

#[derive(Serialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]
struct UserCreated {
    user_id: u64,
}

struct SignUpHandler;

impl RequestHandler<SignUp> for SignUpHandler {
    async fn handle(&self, command: SignUp, scope: &mut Scope) -> Result<u64, Refused> {
        if command.name.is_empty() {
            return Err(Refused);
        }
        scope.emit(UserCounted);
        scope.emit(UserCreated { user_id: 1 });
        Ok(1)
    }
}

#[derive(Clone, Default)]
struct Seen(Arc<AtomicUsize>);

impl EventHandler<UserCounted> for Seen {
    async fn handle(&self, _: &UserCounted, _: &mut Scope) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl EventHandler<UserCreated> for Seen {
    async fn handle(&self, _: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test]
async fn derived_types_are_routed_by_a_mediator() {
    let seen = Seen::default();
    let mediator = Mediator::builder()
        .handle::<SignUp, _>(SignUpHandler)
        .event::<UserCounted, _>(seen.clone())
        .broker(DevnullMessageBroker::new())
        .build()
        .unwrap();
    assert_eq!(mediator.send(SignUp { name: "ada".to_owned() }).await.unwrap(), 1);
    assert_eq!(seen.0.load(Ordering::Relaxed), 1, "the domain event, and not the notification");
    let refused = mediator.send(SignUp { name: String::new() }).await.unwrap_err();
    assert!(matches!(refused, SendError::Handler(Refused)));
}

#[tokio::test]
async fn a_consumed_notification_reaches_its_handlers() {
    let seen = Seen::default();
    let events = EventMediator::builder().event::<UserCreated, _>(seen.clone()).build().unwrap();
    events.send(UserCreated { user_id: 1 }).await.unwrap();
    assert_eq!(seen.0.load(Ordering::Relaxed), 1);
}
