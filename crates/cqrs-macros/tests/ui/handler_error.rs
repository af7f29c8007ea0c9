use cqrs::{HandlerError, IntoHandlerError, SendError};

#[derive(Debug, IntoHandlerError)]
#[cqrs(permanent)]
struct NoAddress;

impl std::fmt::Display for NoAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no address")
    }
}

impl std::error::Error for NoAddress {}

#[derive(Debug)]
struct Outer(NoAddress);

impl std::fmt::Display for Outer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Outer {}

fn right() -> Result<(), HandlerError> {
    Err(NoAddress)?
}

fn sent() -> Result<(), HandlerError> {
    Err(SendError::<u64, NoAddress>::ShutDown)?
}

fn outer() -> Result<(), HandlerError> {
    Err(Outer(NoAddress))?
}

fn main() {}
