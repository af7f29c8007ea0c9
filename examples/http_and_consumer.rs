//! An HTTP API and a consumer in one process: commands over HTTP, health routes, and an ordered shutdown.
//!
//! ```text
//! cargo run --example http_and_consumer
//! curl -i localhost:3000/users --json '{"name":"Ada","email":"ada@example.org"}'
//! curl -i localhost:3000/health/ready
//! ```

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cqrs::prelude::*;
use cqrs::service::ServiceHealth;
use cqrs::{App, MemoryBroker};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

// ---- the application

#[derive(Deserialize, Command)]
#[cqrs(response = User, error = SignUpError)]
struct CreateUser {
    name: String,
    email: String,
}

#[derive(Clone, Serialize)]
struct User {
    id: usize,
    name: String,
}

#[derive(Debug)]
enum SignUpError {
    NoAddress,
    Taken,
}

impl fmt::Display for SignUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAddress => "an e-mail address has an @",
            Self::Taken => "this e-mail address has a user already",
        })
    }
}

#[derive(Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]
struct UserCreated {
    user_id: usize,
    email: String,
}

/// Stands for a database.
#[derive(Default)]
struct CreateUserHandler {
    users: Mutex<HashMap<String, User>>,
}

impl RequestHandler<CreateUser> for CreateUserHandler {
    async fn handle(&self, command: CreateUser, scope: &mut Scope) -> Result<User, SignUpError> {
        let CreateUser { name, email } = command;
        if !email.contains('@') {
            return Err(SignUpError::NoAddress);
        }
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.contains_key(&email) {
            return Err(SignUpError::Taken);
        }
        let user = User { id: users.len() + 1, name };
        users.insert(email.clone(), user.clone());
        scope.emit(UserCreated { user_id: user.id, email });
        Ok(user)
    }
}

struct SendWelcomeMail;

impl EventHandler<UserCreated> for SendWelcomeMail {
    async fn handle(&self, event: &UserCreated, _scope: &mut Scope) -> Result<(), HandlerError> {
        println!("mail to {}: welcome!", event.email);
        Ok(())
    }
}

// ---- HTTP

#[derive(Clone)]
struct Api {
    mediator: Mediator,
    health: ServiceHealth,
}

async fn create_user(State(api): State<Api>, Json(command): Json<CreateUser>) -> Response {
    match api.mediator.send(command).await {
        Ok(user) => (StatusCode::CREATED, Json(user)).into_response(),
        // The user is committed, so the client must not send the command again. Publishing the events
        // again is the server's task.
        Err(SendError::Undelivered(undelivered)) => {
            eprintln!("{undelivered}");
            (StatusCode::CREATED, Json(undelivered.response)).into_response()
        }
        Err(error) => problem(&error),
    }
}

/// The response to a command that failed. A 503 may be sent again; a 500 may be done in part, and its
/// error is of no use to the client.
fn problem<T>(error: &SendError<T, SignUpError>) -> Response {
    let status = match error {
        SendError::Handler(SignUpError::NoAddress) => StatusCode::UNPROCESSABLE_ENTITY,
        SendError::Handler(SignUpError::Taken) => StatusCode::CONFLICT,
        SendError::Rejected(_) => StatusCode::FORBIDDEN, // by a middleware
        SendError::ShutDown | SendError::UnitOfWork(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    match error {
        SendError::Handler(error) => (status, error.to_string()).into_response(),
        error => {
            eprintln!("{error}");
            status.into_response()
        }
    }
}

/// Kubernetes restarts the process when this fails.
async fn live(State(api): State<Api>) -> StatusCode {
    status(api.health.is_live())
}

/// Kubernetes sends no requests while this fails. It fails while the broker is away.
async fn ready(State(api): State<Api>) -> StatusCode {
    status(api.health.is_ready())
}

fn status(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

// ---- the process

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = MemoryBroker::new(); // or a KafkaMessageBroker, or an AmqpMessageBroker
    let mediator = Mediator::builder()
        .handle::<CreateUser, _>(CreateUserHandler::default())
        .broker(broker.clone())
        .build()?;
    let events = EventMediator::builder().event::<UserCreated, _>(SendWelcomeMail).build()?;
    let users = Subscription::to("user_events").group("mailer").json::<UserCreated>();
    let service = Service::builder(broker.clone()).subscribe(users, events).build()?;

    let api = Api { mediator: mediator.clone(), health: service.health() };
    let router = Router::new()
        .route("/users", post(create_user))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .with_state(api);
    let address = env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);

    // Until SIGTERM, Ctrl-C or the end of a part. Then it stops HTTP, the service, the mediator and the broker, in
    // this order: each needs those after it.
    let report = App::new()
        .serve("http", |stopping| axum::serve(listener, router).with_graceful_shutdown(stopping))
        .service(service)
        .mediator(mediator)
        .deadline(Duration::from_secs(25))
        .run()
        .await?;
    println!("stopped: {} handled", report.services[0].subscriptions[0].counts.handled);
    if !report.is_clean() {
        eprintln!("not all was finished: {report:?}");
    }
    Ok(())
}
