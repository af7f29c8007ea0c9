//! [`error_chain`]: an error with its causes in one line, as the suite and the tests of brokers show it.

use std::error::Error;

/// The text of an error and of all its causes, joined by `: `.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
