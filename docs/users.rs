// users.rs: what the programs of the guide share.
use std::convert::Infallible;

use cqrs::mediator::BuildError;
use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

/// A payload is an event: its type says what it is called, where it goes, and what keeps its order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]
pub struct UserCreated {
    #[serde(alias = "userId")] // as python-cqrs 5 writes the fields of a dataclass
    pub user_id: String,
    pub email: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(name = "OrderCreated", topic = "order_events", key = "order_id")]
pub struct OrderCreated {
    #[serde(alias = "orderId")]
    pub order_id: String,
}

/// Stays in this process.
#[derive(DomainEvent)]
pub struct UserCounted;

#[derive(Command)]
#[cqrs(response = String)]
pub struct CreateUser {
    pub email: String,
    pub name: String,
}

/// Holds what it depends on: a database, a clock. This one needs nothing.
pub struct CreateUserHandler;

impl RequestHandler<CreateUser> for CreateUserHandler {
    async fn handle(&self, command: CreateUser, scope: &mut Scope) -> Result<String, Infallible> {
        let CreateUser { email, name } = command;
        let user_id = "1".to_owned();
        scope.emit(UserCounted); // to the handlers here
        scope.emit(UserCreated { user_id: user_id.clone(), email, name }); // to the broker
        Ok(user_id)
    }
}

pub struct CountUsers;

impl EventHandler<UserCounted> for CountUsers {
    async fn handle(&self, _: &UserCounted, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(())
    }
}

pub struct UserCreatedEventHandler;

impl EventHandler<UserCreated> for UserCreatedEventHandler {
    async fn handle(&self, event: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
        println!("User {} created: {}", event.user_id, event.email);
        Ok(())
    }
}

pub struct OrderCreatedEventHandler;

impl EventHandler<OrderCreated> for OrderCreatedEventHandler {
    async fn handle(&self, event: &OrderCreated, _: &mut Scope) -> Result<(), HandlerError> {
        println!("Order {} created", event.order_id);
        Ok(())
    }
}

/// What `cqrs.requests.bootstrap.bootstrap(...)` is in Python.
pub fn mediator(broker: impl MessageBroker) -> Result<Mediator, BuildError> {
    Mediator::builder()
        .handle::<CreateUser, _>(CreateUserHandler)
        .event::<UserCounted, _>(CountUsers)
        .broker(broker)
        .build()
}

/// What `cqrs.events.bootstrap.bootstrap(...)` is in Python.
pub fn event_mediator() -> Result<EventMediator, BuildError> {
    EventMediator::builder()
        .event::<UserCreated, _>(UserCreatedEventHandler)
        .event::<OrderCreated, _>(OrderCreatedEventHandler)
        .build()
}
