//! cqrs-testkit

mod proxy;

pub use proxy::FaultProxy;
