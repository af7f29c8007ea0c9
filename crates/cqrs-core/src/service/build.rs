//! Wires a service from subscriptions and targets, and checks the wiring.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::{ServiceBuildError, ServiceProblem};
use super::health::ServiceHealth;
use super::report::StopHandle;
use super::runtime::{
    BatchLimits, EachHandler, HandlerKind, INBOX_WITHOUT_OUTBOX, Monitor, PlannedSubscription, Spec,
};
use super::subscription::Subscription;
use super::target::{Handler, Target};
use crate::consume::support::group_problem;
use crate::consume::{DeadLetterTarget, StatusReporter, Subscribe, SubscribeRequest};
use crate::mediator::EventMediator;

/// The largest number of messages that every broker fetches by default. A larger batch would never be full.
const MOST_BY_DEFAULT: usize = 300;

/// Subscriptions and their targets, on one broker.
///
/// ```
/// use cqrs_core::{HandlerError, MemoryBroker, NotificationEvent, Received, Service, Subscription, each};
/// # use cqrs_core::Notification;
/// # fn f<UserCreated: Notification + serde::de::DeserializeOwned>() -> Result<(), cqrs_core::service::ServiceBuildError> {
/// let service = Service::builder(MemoryBroker::new())
///     .subscribe(
///         Subscription::to("user_events").group("mailer").json::<UserCreated>(),
///         each(|event: NotificationEvent<UserCreated>, _: Received| async move {
///             println!("a mail for {}", event.event_id);
///             Ok::<(), HandlerError>(())
///         }),
///     )
///     .build()?;
/// // service.run().await? consumes until SIGTERM or Ctrl-C.
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is consumed until it runs"]
pub struct Service {
    pub(crate) broker: Arc<dyn Subscribe>,
    pub(super) planned: Vec<PlannedSubscription>,
    pub(super) drain: Duration,
    pub(super) health: ServiceHealth,
    pub(super) stop: StopHandle,
}

/// Wires a [`Service`].
#[must_use = "nothing is wired until `build` is called"]
pub struct ServiceBuilder {
    broker: Arc<dyn Subscribe>,
    subscriptions: Vec<(Subscription, HandlerKind)>,
    drain: Duration,
}

impl Service {
    /// A builder of a service that consumes from `broker`.
    pub fn builder(broker: impl Subscribe) -> ServiceBuilder {
        ServiceBuilder {
            broker: Arc::new(broker),
            subscriptions: Vec::new(),
            drain: Duration::from_secs(30),
        }
    }

    /// The health of the service, to be read while it runs.
    pub fn health(&self) -> ServiceHealth {
        self.health.clone()
    }

    /// The mediators that its subscriptions send events to.
    pub(crate) fn event_mediators(&self) -> Vec<EventMediator> {
        let mediator = |planned: &PlannedSubscription| match &planned.spec.handler {
            HandlerKind::Each(EachHandler::Mediator(mediator)) => Some(mediator.clone()),
            HandlerKind::Each(_) | HandlerKind::Manual(..) | HandlerKind::Batch { .. } => None,
        };
        self.planned.iter().filter_map(mediator).collect()
    }

    /// A handle that stops the service from another task.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }
}

impl ServiceBuilder {
    /// Adds a subscription and the target of its events.
    pub fn subscribe(mut self, subscription: Subscription, target: impl Target) -> Self {
        let Handler(kind) = target.into_handler();
        self.subscriptions.push((subscription, kind));
        self
    }

    /// Sets the time that running handlers have to finish when the service is stopped; 30 s by default.
    /// Unfinished ones are cancelled and their messages given back.
    pub fn drain_timeout(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Checks the wiring; nothing is connected yet.
    ///
    /// # Errors
    /// All mistakes that can be found without the broker.
    pub fn build(self) -> Result<Service, ServiceBuildError> {
        let mut problems = Vec::new();
        if self.subscriptions.is_empty() {
            problems.push(ServiceProblem::NoSubscription);
        }
        let mut planned = Vec::new();
        let mut requests = Vec::new();
        for (subscription, handler) in self.subscriptions {
            problems.extend(problems_of(&subscription, &handler));
            let group = subscription.group.clone().unwrap_or_default();
            let (status, source) = StatusReporter::new();
            let mut request = subscription.request(&group, status);
            if let HandlerKind::Batch { limits: BatchLimits { size, .. }, .. } = handler {
                request.concurrency = size;
                if size > MOST_BY_DEFAULT {
                    request.max_unsettled.get_or_insert(size.saturating_mul(2));
                }
            }
            let monitor = Arc::new(Monitor::new(&request, source));
            requests.push(request.clone());
            let spec = Spec {
                group,
                routes: subscription.routes,
                policies: subscription.policies,
                undecodable: subscription.undecodable,
                decoders: subscription.decoders,
                middlewares: subscription.middlewares,
                inbox: subscription.inbox,
                handler,
                limits: subscription.limits,
                retry: subscription.retry,
                dead_letter: subscription.dead_letter,
                most_held: most_held(&request),
            };
            planned.push(PlannedSubscription { request, spec, monitor });
        }
        for (index, request) in requests.iter().enumerate() {
            if requests[..index].iter().any(|other| other.name == request.name) {
                let subscription = request.name.to_string();
                problems.push(ServiceProblem::Twice { subscription });
            }
        }
        if problems.is_empty() {
            problems.extend(self.broker.check(&requests).into_iter().map(ServiceProblem::Broker));
        }
        if !problems.is_empty() {
            return Err(ServiceBuildError { problems });
        }
        let health = ServiceHealth(planned.iter().map(|p| Arc::clone(&p.monitor)).collect());
        let stop = StopHandle::new(CancellationToken::new(), CancellationToken::new());
        Ok(Service { broker: self.broker, planned, drain: self.drain, health, stop })
    }
}

/// Half of the bound on unsettled messages, at least 1, so that held messages leave room for others. Where the
/// bound is the broker's default, half of the smallest such default.
fn most_held(request: &SubscribeRequest) -> usize {
    let by_default = || request.concurrency.saturating_mul(3).clamp(16, MOST_BY_DEFAULT);
    (request.max_unsettled.unwrap_or_else(by_default) / 2).max(1)
}

fn problems_of(subscription: &Subscription, handler: &HandlerKind) -> Vec<ServiceProblem> {
    let name = match (&subscription.name, &subscription.group) {
        (Some(name), _) => name.to_string(),
        (None, Some(group)) => format!("{group}@{}", subscription.topics),
        (None, None) => subscription.topics.to_string(),
    };
    let mut problems = Vec::new();
    if subscription.group.as_deref().is_none_or(str::is_empty) {
        problems.push(ServiceProblem::NoGroup { subscription: name.clone() });
    }
    if subscription.topics.is_unnamed() {
        problems.push(ServiceProblem::NoTopic { subscription: name.clone() });
    }
    let routes: Vec<_> = subscription.routes.iter().collect();
    if routes.is_empty() {
        problems.push(ServiceProblem::NoEvents { subscription: name.clone() });
    }
    if subscription.routes.any_name && routes.len() > 1 {
        problems.push(ServiceProblem::NotTheOnly { subscription: name.clone() });
    }
    for (index, route) in routes.iter().enumerate() {
        if !handler.handles(route.types()) {
            let event = route.type_name();
            problems.push(ServiceProblem::NoHandler { subscription: name.clone(), event });
        }
        if let Some(first) = routes[..index].iter().find(|first| first.name() == route.name()) {
            problems.push(ServiceProblem::SameName {
                subscription: name.clone(),
                name: route.name(),
                first: first.type_name(),
                second: route.type_name(),
            });
        }
    }
    let mut option = |wrong: bool, detail| {
        if wrong {
            problems.push(ServiceProblem::Option { subscription: name.clone(), detail });
        }
    };
    let limits = &subscription.limits;
    let is_each = matches!(handler, HandlerKind::Each(_));
    let is_batch = matches!(handler, HandlerKind::Batch { .. });
    option(limits.concurrency == 0, "a concurrency of 0 handles nothing: use at least 1");
    option(
        subscription.max_unsettled == Some(0),
        "max_unsettled(0) fetches nothing: use at least 1",
    );
    option(
        matches!(
            (handler, subscription.max_unsettled),
            (HandlerKind::Batch { limits, .. }, Some(most)) if most > 0 && most < limits.size
        ),
        "a batch can never be full: raise max_unsettled to its size at least",
    );
    option(
        limits.timeout.is_some_and(|timeout| timeout.is_zero()),
        "a timeout of 0 cancels every handler: leave it out for no limit",
    );
    let group_problem = subscription.group.as_deref().and_then(group_problem);
    option(group_problem.is_some(), group_problem.unwrap_or_default());
    option(
        matches!(&subscription.dead_letter, DeadLetterTarget::Named(name) if name.is_empty()),
        "the name of its dead letters is empty: name one, or use DeadLetterTarget::Discard",
    );
    option(
        is_batch && limits.concurrency > 1,
        "batches run one at a time, so that order is kept: leave the concurrency at 1",
    );
    option(
        matches!(handler, HandlerKind::Batch { limits, .. } if limits.size == 0),
        "a batch of 0 events handles nothing: use at least 1",
    );
    option(
        subscription.inbox.as_ref().is_some_and(|inbox| !handler.has_unit(inbox.unit_type())),
        "the inbox marks in the unit of work of a mediator: give the subscription an EventMediator that was \
         built with the inbox's `outbox(..)` or `unit_of_work(..)`",
    );
    option(subscription.inbox.is_some() && handler.publishes_directly(), INBOX_WITHOUT_OUTBOX);
    option(
        !is_each && !subscription.middlewares.is_empty(),
        "middlewares run around the handling of one event: not for `manual` and `batch`",
    );
    option(
        matches!(handler, HandlerKind::Manual(..)) && limits.timeout.is_some(),
        "a timeout would give back a message that its `manual` handler settles: not together",
    );
    option(
        subscription.policies.has_handle() && subscription.undecodable.is_none(),
        "a policy is OnDecodeError::Handle, but nothing handles: add a function with `undecodable`",
    );
    option(
        !subscription.policies.has_handle() && subscription.undecodable.is_some(),
        "a function is given with `undecodable`, but no policy is OnDecodeError::Handle: set the one it \
         is meant for",
    );
    problems
}

crate::debug_fields!(Service { broker, drain }, |it| subscriptions: it.health.0);

crate::debug_fields!(ServiceBuilder { broker, drain }, |it|
    subscriptions: it.subscriptions.iter().map(|(subscription, _)| subscription).collect::<Vec<_>>());
