//! The builder of both mediators, and the errors of wrong wiring.

use std::any::{TypeId, type_name};
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError};

use super::events::EventMediator;
use super::inner::Inner;
use super::requests::{Mediator, MediatorInner};
use crate::broker::MessageBroker;
use crate::dispatch::OnEventFailure;
use crate::error::listed;
use crate::event::{DomainEvent, Event, EventHandler, EventMap, Notification};
use crate::middleware::Middleware;
use crate::request::{Request, RequestHandler, RequestMap};
use crate::scope::{OutboxUnit, Scope, UnitOfWorkFactory, UnitSource};

/// Wires maps, middlewares, unit of work and broker into a mediator `M`: a [`Mediator`] or an
/// [`EventMediator`]. [`Mediator::builder`] and [`EventMediator::builder`] make it.
#[doc(alias("MediatorBuilder", "EventMediatorBuilder", "builder"))]
#[must_use = "nothing is wired until `build` is called"]
pub struct Bootstrap<M> {
    requests: RequestMap,
    inner: Inner,
    required: Vec<(TypeId, &'static str)>,
    mediator: PhantomData<fn() -> M>,
}

impl<M> Bootstrap<M> {
    fn new() -> Self {
        Self {
            requests: RequestMap::new(),
            inner: Inner::default(),
            required: Vec::new(),
            mediator: PhantomData,
        }
    }

    /// Adds `handler` to those of event `E`.
    pub fn event<E: Event, H: EventHandler<E>>(self, handler: H) -> Self {
        self.events(EventMap::new().bind::<E, H>(handler))
    }

    /// Adds a handler of event `E` that `factory` builds for each event.
    pub fn event_with<E: Event, H: EventHandler<E>>(
        self,
        factory: impl Fn(&Scope) -> H + Send + Sync + 'static,
    ) -> Self {
        self.events(EventMap::new().bind_with::<E, H>(factory))
    }

    /// Says that domain event `E` may have no handler here. Otherwise the first one is a warning in the log.
    pub fn may_be_unhandled<E: DomainEvent>(mut self) -> Self {
        let unhandled = self.inner.rounds.unhandled.get_mut();
        unhandled.unwrap_or_else(PoisonError::into_inner).insert(TypeId::of::<E>());
        self
    }

    /// Adds all bindings of `map`.
    pub fn events(mut self, map: EventMap) -> Self {
        let events = std::mem::take(&mut self.inner.rounds.map);
        self.inner.rounds.map = events.merge(map);
        self
    }

    crate::setters! {
        /// Adds `middleware` inside those added before: the first one added is the outermost.
        pub fn middleware(middleware: impl Middleware) {
            self.inner.middlewares.push(Arc::new(middleware))
        }

        /// Sets the broker to which notifications are published.
        pub fn broker(broker: impl MessageBroker) {
            self.inner.finisher.broker = Some(Arc::new(broker))
        }
    }

    /// Sets the factory of each scope's unit of work.
    pub fn unit_of_work(mut self, factory: impl UnitOfWorkFactory) -> Self {
        let tasks = self.inner.finisher.tasks.clone();
        self.inner.units = Some(Arc::new(UnitSource::new(factory, tasks)));
        self
    }

    /// As [`unit_of_work`](Self::unit_of_work), for units that store notifications in their transaction (the
    /// transactional outbox). Notifications are stored as the last write before the commit, by a unit of work
    /// of their own if no handler began one, and a relay publishes them: no [`broker`](Self::broker) is needed.
    pub fn outbox<F>(mut self, factory: F) -> Self
    where
        F: UnitOfWorkFactory<Unit: OutboxUnit>,
    {
        let tasks = self.inner.finisher.tasks.clone();
        self.inner.units = Some(Arc::new(UnitSource::with_outbox(factory, tasks)));
        self
    }

    /// Sends notifications with payload `P` to `topic` instead of their type's topic.
    pub fn topic<P: Notification>(mut self, topic: impl Into<Box<str>>) -> Self {
        self.inner.finisher.topics.insert(TypeId::of::<P>(), topic.into());
        self
    }

    crate::setters! {
        /// Sets the number of handlers of emitted events that may run at once. With 1, the default, they run one
        /// after the other, in order of emission, and share the unit of work. With more they run concurrently in the
        /// caller's task, each without the unit of work.
        pub fn concurrency(handlers: usize) { self.inner.rounds.options.concurrency = handlers }

        /// Sets the number of rounds of follow-up events that one `send` may cause; 16 by default.
        pub fn max_event_depth(rounds: usize) { self.inner.rounds.options.max_depth = rounds }

        /// Sets the effect of a failing event handler; [`OnEventFailure::Fail`] by default.
        pub fn on_event_failure(policy: OnEventFailure) {
            self.inner.rounds.options.on_failure = policy
        }
    }

    fn check(
        &self,
        has: impl Fn(&Self, TypeId) -> bool,
        never_run: Vec<BuildProblem>,
    ) -> Result<(), BuildError> {
        let conflicts =
            self.requests.conflicts().iter().map(|conflict| BuildProblem::TwoHandlers {
                request: conflict.request,
                first: conflict.first,
                second: conflict.second,
            });
        let missing = self
            .required
            .iter()
            .filter(|(required, _)| !has(self, *required))
            .map(|&(_, required)| BuildProblem::NoHandler { required });
        let has_outbox = self.inner.units.as_ref().is_some_and(|source| source.has_outbox());
        let unused = (has_outbox && self.inner.finisher.broker.is_some())
            .then_some(BuildProblem::BrokerBesideOutbox);
        let problems: Vec<_> = conflicts.chain(missing).chain(never_run).chain(unused).collect();
        match problems.is_empty() {
            true => Ok(()),
            false => Err(BuildError { problems }),
        }
    }
}

impl Mediator {
    /// A builder without any binding.
    pub fn builder() -> Bootstrap<Self> {
        Bootstrap::new()
    }
}

impl Bootstrap<Mediator> {
    /// Binds request `R` to `handler`.
    pub fn handle<R: Request, H: RequestHandler<R>>(self, handler: H) -> Self {
        self.requests(RequestMap::new().bind::<R, H>(handler))
    }

    /// Binds request `R` to a handler that `factory` builds for each call.
    pub fn handle_with<R: Request, H: RequestHandler<R>>(
        self,
        factory: impl Fn(&Scope) -> H + Send + Sync + 'static,
    ) -> Self {
        self.requests(RequestMap::new().bind_with::<R, H>(factory))
    }

    /// Adds all bindings of `map`.
    pub fn requests(mut self, map: RequestMap) -> Self {
        self.requests = self.requests.merge(map);
        self
    }

    /// Makes it an error of `build` when `R` has no handler.
    pub fn requires<R: Request>(mut self) -> Self {
        self.required.push((TypeId::of::<R>(), type_name::<R>()));
        self
    }

    /// Builds the mediator.
    ///
    /// # Errors
    /// If a request type has two handlers, a required one has none, or a handler is bound to a
    /// notification, which a mediator publishes instead; all of them are named.
    pub fn build(self) -> Result<Mediator, BuildError> {
        let notifications = self.inner.rounds.map.notifications();
        let never_run = notifications
            .map(|(event, handler)| BuildProblem::NeverRuns { event, handler })
            .collect();
        self.check(|this, required| this.requests.contains(required), never_run)?;
        Ok(Mediator(Arc::new(MediatorInner { requests: self.requests, inner: self.inner })))
    }
}

impl EventMediator {
    /// Starts to wire one.
    pub fn builder() -> Bootstrap<Self> {
        Bootstrap::new()
    }
}

impl Bootstrap<EventMediator> {
    /// Makes it an error of `build` when event `E` has no handler.
    pub fn requires<E: Event>(mut self) -> Self {
        self.required.push((TypeId::of::<E>(), type_name::<E>()));
        self
    }

    /// Builds the mediator.
    ///
    /// # Errors
    /// If a required event type has no handler; all of them are named.
    pub fn build(self) -> Result<EventMediator, BuildError> {
        self.check(|this, required| this.inner.rounds.map.contains(required), Vec::new())?;
        Ok(EventMediator(Arc::new(self.inner)))
    }
}

crate::debug_fields!(Bootstrap<M> { requests }, |it|
    events: it.inner.rounds.map,
    middlewares: it.inner.middlewares.len(),
    broker: it.inner.finisher.broker);

/// A mediator that was wired wrongly; names every problem at once.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the mediator is wired wrongly: {}", listed(problems))]
pub struct BuildError {
    problems: Vec<BuildProblem>,
}

/// One mistake in a mediator's wiring.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildProblem {
    /// A request type has more than one handler.
    #[error("{request} has two handlers, {first} and {second}: remove one")]
    TwoHandlers {
        /// The request type.
        request: &'static str,
        /// The handler bound first.
        first: &'static str,
        /// The handler bound later.
        second: &'static str,
    },
    /// A handler is bound to a notification in a mediator of requests, where it would never run.
    #[error(
        "{handler} would never run: {event} is a notification, which a Mediator publishes; bind it in \
         the EventMediator that consumes it, or make it a domain event"
    )]
    NeverRuns {
        /// The notification.
        event: &'static str,
        /// The handler bound to it first.
        handler: &'static str,
    },
    /// A type named with `requires` has no handler.
    #[error("{required} is required, but no handler is bound to it")]
    NoHandler {
        /// The type.
        required: &'static str,
    },
    /// The mediator has a broker and an outbox. Notifications go to the outbox, the broker is never used.
    #[error(
        "the broker would never be used: notifications go to the outbox, and its relay publishes them; \
         remove `broker(..)` or `outbox(..)`"
    )]
    BrokerBesideOutbox,
}

impl BuildError {
    /// The problems; never empty.
    pub fn problems(&self) -> &[BuildProblem] {
        &self.problems
    }
}

crate::error_debug!(BuildError);
crate::error_debug!(BuildProblem);
