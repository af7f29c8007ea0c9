//! Tests of handlers that send before they return their future: they are nested as others are.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use cqrs_core::{Mediator, RequestHandler, Scope, SendError};
use cqrs_macros::{Command, Notification};
use futures_util::FutureExt;
use serde::Serialize;
use support::RecordingBroker;
use tokio::runtime::Handle;

type Lazy = Arc<OnceLock<Mediator>>;

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = u32, error = String)]
struct Dig(u32);

struct Digger(Lazy);

impl RequestHandler<Dig> for Digger {
    fn handle(
        &self,
        Dig(left): Dig,
        _: &mut Scope,
    ) -> impl Future<Output = Result<u32, String>> + Send {
        let below = match left {
            0 => Ok(0),
            _ => self.0.get().unwrap().send(Dig(left - 1)).now_or_never().unwrap(),
        };
        async move { below.map(|below| below + 1).map_err(|error| error.to_string()) }
    }
}

#[tokio::test]
async fn nested_sends_beyond_the_limit_are_an_error() {
    let lazy = Lazy::default();
    let mediator = Mediator::builder().handle::<Dig, _>(Digger(Arc::clone(&lazy))).build().unwrap();
    let mediator = lazy.get_or_init(|| mediator);
    let error = mediator.send(Dig(500)).await.unwrap_err().to_string();
    assert!(error.contains("nested 32 deep"), "{error}");
    mediator.send(Dig(31)).await.unwrap();
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = (), error = Infallible)]
struct Charge;

#[derive(Debug, Clone, Serialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "Charged", topic = "refused")]
struct Charged;

/// The broker refuses its event.
struct Charger;

impl RequestHandler<Charge> for Charger {
    async fn handle(&self, _: Charge, scope: &mut Scope) -> Result<(), Infallible> {
        scope.emit(Charged);
        Ok(())
    }
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = (), error = String)]
struct Shop;

struct Shopper(Mediator);

impl RequestHandler<Shop> for Shopper {
    fn handle(&self, _: Shop, _: &mut Scope) -> impl Future<Output = Result<(), String>> + Send {
        let sent = tokio::task::block_in_place(|| Handle::current().block_on(self.0.send(Charge)));
        async move { sent.map_err(|error| error.to_string()) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_after_a_nested_commit_says_so() {
    let charging = Mediator::builder().handle::<Charge, _>(Charger);
    let charging = charging.broker(RecordingBroker::default()).build().unwrap();
    let shopping = Mediator::builder().handle::<Shop, _>(Shopper(charging)).build().unwrap();
    let error = shopping.send(Shop).await.unwrap_err();
    assert!(matches!(error, SendError::HandlerAfterCommit(_)), "{error:?}");
}
