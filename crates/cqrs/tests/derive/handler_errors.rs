//! The derive of `IntoHandlerError`: the class of an error at its type.

use std::convert::Infallible;
use std::io;

use cqrs::{HandlerError, IntoHandlerError, SendError};

#[derive(Debug, thiserror::Error, IntoHandlerError)]
enum MailError {
    #[error("{0} is no address")]
    #[cqrs(permanent)]
    NoAddress(String),
    #[error("the mailbox is full")]
    Full { quota: u64 },
    #[error("the mail server does not answer")]
    Away(#[from] io::Error),
}

#[derive(Debug, thiserror::Error, IntoHandlerError)]
#[cqrs(permanent)]
enum Outer {
    #[error(transparent)]
    #[cqrs(transparent)]
    Mail(#[from] MailError),
    #[error("paused")]
    #[cqrs(retryable)]
    Paused,
    #[error("refused")]
    Refused,
}

#[derive(Debug, thiserror::Error, IntoHandlerError)]
#[cqrs(permanent)]
#[error("{what} is invalid")]
struct Invalid<T: std::fmt::Debug + std::fmt::Display + Send + Sync + 'static> {
    what: T,
}

#[derive(Debug, thiserror::Error, IntoHandlerError)]
#[cqrs(transparent)]
#[error("wrapped")]
struct Wrapper(#[source] io::Error);

fn handled<E>(error: E) -> HandlerError
where
    HandlerError: From<E>,
{
    let handle = || -> Result<(), HandlerError> { Err(error)? };
    handle().expect_err("the handler fails")
}

#[test]
fn question_mark_honours_the_class_of_the_type() {
    assert!(!handled(MailError::NoAddress("ada".into())).is_retryable());
    assert!(handled(MailError::Full { quota: 1 }).is_retryable());
    assert!(handled(MailError::Away(io::Error::other("reset"))).is_retryable());
    assert!(!handled(Invalid { what: "it" }).is_retryable());
    assert!(handled(io::Error::other("reset")).is_retryable(), "any other error");
}

#[test]
fn variant_has_precedence_over_its_type() {
    assert!(!handled(Outer::Refused).is_retryable());
    assert!(handled(Outer::Paused).is_retryable());
}

#[test]
fn transparent_is_the_class_of_the_inner_error() {
    assert!(!handled(Outer::Mail(MailError::NoAddress("ada".into()))).is_retryable());
    let full = handled(Outer::Mail(MailError::Full { quota: 1 }));
    assert!(full.is_retryable() && full.source().is::<MailError>());
    assert!(handled(Wrapper(io::Error::other("reset"))).source().is::<io::Error>());
}

#[test]
fn retryable_error_that_tells_of_committed_work_is_not() {
    #[derive(Debug, thiserror::Error, IntoHandlerError)]
    #[error("the order failed")]
    struct OrderFailed(#[source] SendError<(), Infallible>);
    let committed = || SendError::FailedAfterCommit("panicked".to_owned());
    assert!(!handled(OrderFailed(committed())).is_retryable());
    assert!(handled(OrderFailed(SendError::ShutDown)).is_retryable());
}

#[test]
fn send_error_keeps_the_class_of_the_handlers_error() {
    let sent = |error| SendError::<u64, MailError>::into_handler_error(error);
    let refused = sent(SendError::Handler(MailError::NoAddress("ada".into())));
    assert!(!refused.is_retryable() && refused.source().is::<MailError>());
    assert!(sent(SendError::Handler(MailError::Full { quota: 1 })).is_retryable());
    assert!(sent(SendError::ShutDown).is_retryable());
    let below = sent(SendError::HandlerAfterCommit(MailError::Full { quota: 1 }));
    assert!(!below.is_retryable(), "the work below would be done twice");
}
