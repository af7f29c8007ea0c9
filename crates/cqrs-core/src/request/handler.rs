//! The request handler trait, and the type-erased twin that maps hold.

use super::Request;
use crate::broker::BoxFuture;
use crate::dispatch::boxed;
use crate::mediator::RequestAnswer;
use crate::middleware::Outcome;
use crate::scope::Scope;

/// Handles one type of request. A plain struct that holds its dependencies.
///
/// ```
/// # use cqrs_core::request::RequestKind;
/// # use cqrs_core::{Request, RequestHandler, Scope};
/// # struct Add(i32, i32);
/// # impl Request for Add {
/// #     type Response = i32; type Error = std::convert::Infallible;
/// #     const NAME: &'static str = "Add"; const KIND: RequestKind = RequestKind::Query;
/// # }
/// struct Adder;
///
/// impl RequestHandler<Add> for Adder {
///     async fn handle(&self, Add(a, b): Add, _scope: &mut Scope) -> Result<i32, std::convert::Infallible> {
///         Ok(a + b)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle the request `{R}`: write `impl RequestHandler<{R}> for {Self}`",
    label = "not the handler of `{R}`",
    note = "its function is \
            `async fn handle(&self, request: {R}, scope: &mut Scope) -> Result<Response, Error>`, \
            where `Response` and `Error` are those of `{R}`"
)]
pub trait RequestHandler<R: Request>: Send + Sync + 'static {
    /// Handles one request. Events given to [`Scope::emit`] are emitted after this returned `Ok`, and not
    /// otherwise.
    ///
    /// # Cancel safety
    /// The caller may drop the future at any await; the scope's unit of work is rolled back then.
    fn handle(
        &self,
        request: R,
        scope: &mut Scope,
    ) -> impl Future<Output = Result<R::Response, R::Error>> + Send;
}

/// The dyn-safe twin of [`RequestHandler`]: it boxes the future of each call, once.
pub(crate) trait DynRequestHandler<R: Request>: Send + Sync {
    fn handle<'a>(
        &'a self,
        request: R,
        scope: &'a mut Scope,
    ) -> BoxFuture<'a, Result<R::Response, R::Error>>;

    /// Runs the handler at the end of a chain of middlewares.
    fn end_chain<'a>(
        &'a self,
        scope: &'a mut Scope,
        answer: &'a mut RequestAnswer<'_, R>,
    ) -> BoxFuture<'a, Outcome>;
}

impl<R: Request, H: RequestHandler<R>> DynRequestHandler<R> for H {
    fn handle<'a>(
        &'a self,
        request: R,
        scope: &'a mut Scope,
    ) -> BoxFuture<'a, Result<R::Response, R::Error>> {
        boxed(|| RequestHandler::handle(self, request, scope))
    }

    fn end_chain<'a>(
        &'a self,
        scope: &'a mut Scope,
        answer: &'a mut RequestAnswer<'_, R>,
    ) -> BoxFuture<'a, Outcome> {
        answer.run_handler(self, scope)
    }
}

/// A handler that is built for each call.
pub(crate) struct Built<F>(pub(crate) F);

impl<R: Request, H: RequestHandler<R>, F> RequestHandler<R> for Built<F>
where
    F: Fn(&Scope) -> H + Send + Sync + 'static,
{
    async fn handle(&self, request: R, scope: &mut Scope) -> Result<R::Response, R::Error> {
        let handler = (self.0)(scope);
        handler.handle(request, scope).await
    }
}
