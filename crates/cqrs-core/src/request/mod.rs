//! Commands and queries, their handlers, and the map that binds one to the other.

mod handler;
mod map;

use std::fmt;

pub(crate) use handler::DynRequestHandler;
pub use handler::RequestHandler;
pub use map::RequestMap;

/// Something the application is asked to do ([`Command`]) or to tell ([`Query`]), with the types of
/// its answer.
///
/// The answer's types belong to the request, not to its handler, so that whoever sends it gets them
/// without knowing the handler. `#[derive(Command)]` and `#[derive(Query)]` write this impl.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a command nor a query",
    label = "not a request",
    note = "add `#[derive(Command)]` or `#[derive(Query)]` to it, and \
            `#[cqrs(response = .., error = ..)]` where the defaults `()` and `Infallible` do not fit"
)]
pub trait Request: Send + Sized + 'static {
    /// What a successful handler returns.
    type Response: Send + 'static;
    /// What a failing handler returns. `Infallible` for one that cannot fail.
    type Error: fmt::Debug + fmt::Display + Send + Sync + 'static;
    /// What middlewares, logs and errors call this request.
    const NAME: &'static str;
    /// Whether this is a command or a query.
    const KIND: RequestKind;
}

/// A request that changes something.
pub trait Command: Request {}

/// A request that only reads.
pub trait Query: Request {}

/// Whether a request changes something or only reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// It changes something.
    Command,
    /// It only reads.
    Query,
}
