//! Boxes a future, used by the erased twins of handlers and middlewares.

use std::pin::Pin;

/// Boxes the future that `make` returns. It is built in its box.
///
/// `Box::pin(make())` builds it on the stack and copies it, and the copy waits for the stores just before it. That
/// costs as much as the allocation.
#[inline(always)]
pub(crate) fn boxed<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    let place = Box::new_uninit();
    Box::into_pin(Box::write(place, make()))
}
