//! Tests of the limit on nested sends.

use super::*;

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = u32, error = String)]
struct Dig(u32);

#[derive(Debug, Clone, DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct Dug(u32);

type Lazy = Arc<OnceLock<Mediator>>;

/// Sends the next request, from the handler or from an event handler.
struct Digger {
    mediator: Lazy,
    by_event: bool,
}

impl RequestHandler<Dig> for Digger {
    async fn handle(&self, Dig(left): Dig, scope: &mut Scope) -> Result<u32, String> {
        match left {
            0 => Ok(0),
            _ if self.by_event => {
                scope.emit(Dug(left));
                Ok(1)
            }
            _ => {
                let mediator = self.mediator.get().unwrap();
                let below =
                    mediator.send(Dig(left - 1)).await.map_err(|error| error.to_string())?;
                Ok(below + 1)
            }
        }
    }
}

struct DigOn(Lazy);

impl EventHandler<Dug> for DigOn {
    async fn handle(&self, Dug(left): &Dug, _: &mut Scope) -> Result<(), HandlerError> {
        let sent = self.0.get().unwrap().send(Dig(left - 1)).await;
        sent.map(drop).map_err(|error| HandlerError::permanent(error.to_string()))
    }
}

fn digging(by_event: bool, middlewares: usize) -> Mediator {
    let lazy = Lazy::default();
    let digger = Digger { mediator: Arc::clone(&lazy), by_event };
    let mut builder =
        Mediator::builder().handle::<Dig, _>(digger).event::<Dug, _>(DigOn(Arc::clone(&lazy)));
    for _ in 0..middlewares {
        builder = builder.middleware(Passing);
    }
    lazy.get_or_init(|| builder.build().unwrap()).clone()
}

#[tokio::test]
async fn nested_sends_beyond_the_limit_are_an_error() {
    for (by_event, middlewares) in [(false, 0), (false, 3), (true, 0), (true, 3)] {
        let mediator = digging(by_event, middlewares);
        let error = mediator.send(Dig(500)).await.unwrap_err().to_string();
        assert!(error.contains("nested 32 deep"), "{error}");
        // A refused attempt leaves no count.
        mediator.send(Dig(31)).await.unwrap();
    }
}

/// Sends the call again through the mediator that it is part of.
struct Resending(Lazy, Log);

impl Middleware for Resending {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        if let Some(&Dig(left)) = call.input::<Dig>() {
            let sent = self.0.get().unwrap().send(Dig(left)).await;
            if matches!(sent, Err(SendError::TooDeep { .. })) {
                self.1.add("too deep");
            }
            sent.map_err(|error| Failure::rejected(error.to_string()))?;
        }
        next.run(call).await
    }
}

#[tokio::test]
async fn middleware_that_sends_in_a_loop_is_an_error() {
    let (lazy, log) = (Lazy::default(), Log::default());
    let digger = Digger { mediator: Arc::clone(&lazy), by_event: false };
    let builder = Mediator::builder().handle::<Dig, _>(digger);
    let mediator = builder.middleware(Resending(Arc::clone(&lazy), log.clone())).build().unwrap();
    lazy.get_or_init(|| mediator).send(Dig(0)).await.unwrap_err();
    assert_eq!(log.lines(), ["too deep"]);
}

#[tokio::test]
async fn event_middleware_that_sends_in_a_loop_is_an_error() {
    struct Again(Arc<OnceLock<EventMediator>>, Log);
    impl Middleware for Again {
        async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
            let sent = self.0.get().unwrap().send(Audited).await;
            if matches!(sent, Err(SendError::TooDeep { .. })) {
                self.1.add("too deep");
            }
            sent.map_err(Failure::rejected)?;
            next.run(call).await
        }
    }
    let (lazy, log) = (Arc::new(OnceLock::new()), Log::default());
    let builder = EventMediator::builder().event::<Audited, _>(ChargeOnAudited(charging(&log)));
    let mediator = builder.middleware(Again(Arc::clone(&lazy), log.clone())).build().unwrap();
    lazy.get_or_init(|| mediator).send(Audited).await.unwrap_err();
    assert_eq!(log.lines(), ["too deep"]);
}

#[tokio::test]
async fn emitting_in_a_loop_is_an_error() {
    struct EmitAgain(Lazy);
    impl EventHandler<Audited> for EmitAgain {
        async fn handle(&self, _: &Audited, _: &mut Scope) -> Result<(), HandlerError> {
            Ok(self.0.get().unwrap().emitter().emit(Audited).await?)
        }
    }
    let lazy = Lazy::default();
    let builder = Mediator::builder().event::<Audited, _>(EmitAgain(Arc::clone(&lazy)));
    let mediator = lazy.get_or_init(|| builder.build().unwrap());
    let error = mediator.emitter().emit(Audited).await.unwrap_err();
    assert!(error.to_string().contains("nested 32 deep"), "{error}");
}

#[tokio::test]
async fn panic_below_leaves_no_level_behind() {
    struct Explode;
    impl RequestHandler<Audit> for Explode {
        async fn handle(&self, _: Audit, _: &mut Scope) -> Result<(), Infallible> {
            panic!("no");
        }
    }
    let mediator = Mediator::builder().handle::<Audit, _>(Explode).build().unwrap();
    for _ in 0..100 {
        assert!(matches!(mediator.send(Audit).await, Err(SendError::Panicked(_))));
    }
}

#[tokio::test]
async fn sends_side_by_side_are_not_nested() {
    let mediator = digging(false, 0);
    let sends = (0..200).map(|_| mediator.send(Dig(8)));
    for sent in futures_util::future::join_all(sends).await {
        assert_eq!(sent.unwrap(), 8);
    }
}
