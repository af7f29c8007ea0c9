//! Commands and queries, their handlers, and the map that binds them.

mod handler;
mod map;

use std::fmt;

pub(crate) use handler::DynRequestHandler;
pub use handler::RequestHandler;
pub use map::RequestMap;

/// A request to change ([`Command`]) or to read ([`Query`]) something, with the types of its response and
/// error.
///
/// These types belong to the request, not to its handler, so that the sender does not have to know the
/// handler. `#[derive(Command)]` and `#[derive(Query)]` write this impl.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a command nor a query: add `#[derive(Command)]` or `#[derive(Query)]`",
    label = "not a request",
    note = "with it goes `#[cqrs(response = .., error = ..)]` where the defaults `()` and `Infallible` do not fit"
)]
pub trait Request: Send + Sized + 'static {
    /// The response of a successful handler.
    type Response: Send + 'static;
    /// The error of a failing handler. `Infallible` for one that cannot fail.
    type Error: fmt::Debug + fmt::Display + Send + Sync + 'static;
    /// The request's name in middlewares, logs and errors.
    const NAME: &'static str;
    /// The kind: a command or a query.
    const KIND: RequestKind;
}

/// A request that changes something.
pub trait Command: Request {}

/// A request that only reads.
pub trait Query: Request {}

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// It changes something.
    Command,
    /// It only reads.
    Query,
}
