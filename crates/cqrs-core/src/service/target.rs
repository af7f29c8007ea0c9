//! The targets of a subscription: mediators, and the functions of [`function`](super::function).

use std::fmt;

use super::runtime::{EachHandler, HandlerKind};
use crate::consume::Received;
use crate::mediator::EventMediator;

/// The target of a subscription's events: an [`EventMediator`], [`per_delivery`], [`each`](super::each),
/// [`manual`](super::manual) or [`batch`](super::batch).
///
/// Sealed: the runtime must know how the messages of each kind are settled.
#[diagnostic::on_unimplemented(
    message = "this cannot handle the events of a subscription: give an `EventMediator`, or put a function in \
               `each(..)`, `manual(..)` or `batch(..)`",
    label = "not a target of a subscription"
)]
pub trait Target: sealed::Sealed {}

#[diagnostic::do_not_recommend]
impl<T: sealed::Sealed> Target for T {}

pub(super) mod sealed {
    pub trait Sealed {
        #[doc(hidden)]
        fn into_handler(self) -> super::Handler;
    }
}

/// The target of [`each`](super::each), [`manual`](super::manual), [`batch`](super::batch) and
/// [`per_delivery`].
pub struct Handler(pub(super) HandlerKind);

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            HandlerKind::Each(_) => "Each",
            HandlerKind::Manual(..) => "Manual",
            HandlerKind::Batch { .. } => "Batch",
        })
    }
}

impl sealed::Sealed for Handler {
    fn into_handler(self) -> Handler {
        self
    }
}

impl sealed::Sealed for EventMediator {
    fn into_handler(self) -> Handler {
        Handler(HandlerKind::Each(EachHandler::Mediator(self)))
    }
}

/// A target that builds a mediator for each delivery, by `factory` from the message.
pub fn per_delivery<F>(factory: F) -> Handler
where
    F: Fn(&Received) -> EventMediator + Send + Sync + 'static,
{
    Handler(HandlerKind::Each(EachHandler::PerDelivery(Box::new(factory))))
}
