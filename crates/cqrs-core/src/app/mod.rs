//! [`App`]: runs the servers and services of a process, and stops all its parts in order.

mod ending;
mod report;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::broker::{BoxFuture, BrokerState, MessageBroker};
use crate::dispatch::panic_message;
use crate::mediator::{EventMediator, Mediator, MediatorShutdown};
use crate::message::Name;
use crate::service::{Service, ServiceHealth, StopHandle, stop_on_signals};

use ending::Ending;
pub use report::{AppError, AppReport};
use report::{BoxError, Outcomes};

/// Runs the servers and services of a process until it is stopped, and then stops all its parts in order.
///
/// ```
/// # use cqrs_core::{App, Mediator, MemoryBroker, Service};
/// # async fn serve_http(_: Mediator, stopping: cqrs_core::app::Stopping) -> std::io::Result<()> {
/// #     stopping.await;
/// #     Ok(())
/// # }
/// # async fn f(mediator: Mediator, service: Service, broker: MemoryBroker) -> Result<(), Box<dyn std::error::Error>> {
/// let report = App::new()
///     // axum: `|stopping| axum::serve(listener, router).with_graceful_shutdown(stopping)`
///     .serve("http", |stopping| serve_http(mediator.clone(), stopping))
///     .service(service)
///     .mediator(mediator.clone())
///     .broker(broker)
///     .run() // until SIGTERM or Ctrl-C
///     .await?;
/// if !report.is_clean() {
///     eprintln!("not all was finished: {report:?}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # The order of a stop
/// 1. **Servers**: their [`Stopping`] resolves, and they finish what they began. The other parts still work.
/// 2. **Services**: they drain, as after [`StopHandle::stop`].
/// 3. **Mediators**, those of the services too: running sends, commits and publishes finish.
/// 4. **Brokers**: those given with [`broker`](Self::broker) and those that the services and mediators use.
///    They flush and close.
///
/// All of it takes at most about the [deadline](Self::deadline), whatever hangs. Servers and services have three
/// quarters of it; then they are cancelled, and messages in flight are given back. The rest is for mediators and
/// brokers, so that a slow handler does not cost confirms.
///
/// # What ends it
/// A signal, its [`stop_handle`](Self::stop_handle), or the end of any of its servers and services: a process
/// of which a part has ended should be started again. If that part failed, [`run`](Self::run) returns its error.
#[must_use = "nothing runs until `run` is awaited"]
pub struct App {
    servers: Vec<(Arc<str>, Server)>,
    services: Vec<Service>,
    mediators: Vec<Mediator>,
    brokers: Vec<Arc<dyn MessageBroker>>,
    deadline: Duration,
    servers_stop: CancellationToken,
    stop: StopHandle,
}

/// A server of the process, such as an HTTP server.
type Server = BoxFuture<'static, Result<(), BoxError>>;

/// Resolves when a server should stop: give it to the server's graceful shutdown.
#[must_use = "a server that ignores it is cancelled"]
pub struct Stopping(Pin<Box<WaitForCancellationFutureOwned>>);

impl Future for Stopping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_unpin(cx)
    }
}

impl fmt::Debug for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stopping")
    }
}

impl App {
    /// An app without any part.
    pub fn new() -> Self {
        Self {
            servers: Vec::new(),
            services: Vec::new(),
            mediators: Vec::new(),
            brokers: Vec::new(),
            deadline: Duration::from_secs(30),
            servers_stop: CancellationToken::new(),
            stop: StopHandle::new(CancellationToken::new(), CancellationToken::new()),
        }
    }

    /// Adds a server, such as an HTTP server: a future that takes requests until its [`Stopping`] resolves,
    /// finishes them, and ends. `name` is its name in errors.
    ///
    /// With axum: `.serve("http", |stopping| axum::serve(listener, router).with_graceful_shutdown(stopping))`.
    pub fn serve<F, S, E>(mut self, name: impl Into<Name>, server: F) -> Self
    where
        F: FnOnce(Stopping) -> S,
        S: IntoFuture<Output = Result<(), E>>,
        S::IntoFuture: Send + 'static,
        E: Into<BoxError>,
    {
        let stopping = Stopping(Box::pin(self.servers_stop.clone().cancelled_owned()));
        let server = server(stopping).into_future();
        let server = Box::pin(async move { server.await.map_err(Into::into) });
        self.servers.push((name.into().0, server));
        self
    }

    /// Adds a service. Its event mediators and its broker are shut down with the others.
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// Adds a mediator of requests. Its broker is closed with the others.
    pub fn mediator(mut self, mediator: Mediator) -> Self {
        self.mediators.push(mediator);
        self
    }

    /// Adds a broker to close that no service or mediator of this app uses.
    pub fn broker(mut self, broker: impl MessageBroker) -> Self {
        self.brokers.push(Arc::new(broker));
        self
    }

    /// Sets the time that a stop may take; 30 s by default. It bounds the services' own
    /// [drain timeouts](crate::service::ServiceBuilder::drain_timeout).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The health of all services added so far, for a route of a server that is added next.
    pub fn health(&self) -> ServiceHealth {
        ServiceHealth::join(self.services.iter().map(Service::health))
    }

    /// A handle that stops the app from another task.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Runs until the process gets SIGTERM or Ctrl-C, or a part ends; then stops in order. A second signal
    /// stops at once.
    ///
    /// # Errors
    /// If a server or a service failed: the first one, with the report of the stop.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the servers and the handlers and gives unsettled messages back. Mediators
    /// and brokers are not shut down then.
    pub async fn run(self) -> Result<AppReport, AppError> {
        let stop = self.stop.clone();
        tokio::select! {
            ended = self.run_parts() => ended,
            never = stop_on_signals(&stop) => match never {},
        }
    }

    /// As [`run`](Self::run), but until `signal` resolves, or a part ends.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_until<F: Future>(self, signal: F) -> Result<AppReport, AppError> {
        let stop = self.stop.clone();
        let stopping = async {
            signal.await;
            stop.stop();
            std::future::pending().await
        };
        tokio::select! {
            ended = self.run_parts() => ended,
            never = stopping => never,
        }
    }

    async fn run_parts(self) -> Result<AppReport, AppError> {
        let Self { servers, services, mediators, mut brokers, deadline, servers_stop, stop } = self;
        let stop_services: Vec<_> = services.iter().map(Service::stop_handle).collect();
        let event_mediators: Vec<_> = services.iter().flat_map(Service::event_mediators).collect();
        brokers.extend(services.iter().map(|service| Arc::clone(&service.broker) as _));
        brokers.extend(event_mediators.iter().filter_map(EventMediator::broker).map(Arc::clone));
        brokers.extend(mediators.iter().filter_map(Mediator::broker).map(Arc::clone));

        let mut outcomes = Outcomes::new(servers.iter().map(|(name, _)| name), services.len());
        let mut serving = JoinSet::new();
        for (index, (_, server)) in servers.into_iter().enumerate() {
            let caught = AssertUnwindSafe(server).catch_unwind();
            let ended = |panic| Err(format!("it panicked: {}", panic_message(panic)).into());
            serving.spawn(async move { (index, caught.await.unwrap_or_else(ended)) });
        }
        let mut consuming = JoinSet::new();
        for (index, service) in services.into_iter().enumerate() {
            consuming.spawn(async move { (index, service.consume().await) });
        }
        tokio::select! {
            () = stop.graceful.cancelled() => {}
            Some(ended) = serving.join_next() => outcomes.server(ended),
            Some(ended) = consuming.join_next() => outcomes.service(ended),
        }

        let ending = Ending::new(deadline, stop.now);
        servers_stop.cancel();
        let served = async {
            while let Some(ended) = serving.join_next().await {
                outcomes.server(ended);
            }
        };
        ending.intake(served).await;
        serving.abort_all();

        stop_services.iter().for_each(StopHandle::stop);
        {
            let mut consumed = pin!(async {
                while let Some(ended) = consuming.join_next().await {
                    outcomes.service(ended);
                }
            });
            if !ending.intake(consumed.as_mut()).await {
                stop_services.iter().for_each(StopHandle::stop_now);
                ending.cancelled(consumed).await;
            }
        }

        let shut_down = |left: Duration| {
            let requests = mediators.iter().map(|one| one.shutdown(left).boxed());
            let events = event_mediators.iter().map(|one| one.shutdown(left).boxed());
            join_all(requests.chain(events).collect::<Vec<BoxFuture<'_, MediatorShutdown>>>())
        };
        let left = ending.within(shut_down).await;
        let mut report = outcomes.report;
        report.unfinished = left.iter().map(|one| one.unfinished).sum();
        report.undelivered = left.iter().map(|one| one.undelivered).sum();

        for broker in brokers {
            // Most are clones of one broker, which is closed and counted once.
            if broker.state() != BrokerState::Closed {
                report.undelivered += ending.within(|left| broker.shutdown(left)).await.undelivered;
            }
        }
        match outcomes.failed {
            None => Ok(report),
            Some((part, source)) => Err(AppError { part, source, report }),
        }
    }
}

impl Default for App {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(|(name, _)| name).collect();
        f.debug_struct("App")
            .field("servers", &servers)
            .field("services", &self.services)
            .field("mediators", &self.mediators)
            .field("brokers", &self.brokers)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
