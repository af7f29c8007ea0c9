//! [`Failure`]: why a command failed, and what to do; used by all commands.

use std::error::Error;
use std::fmt;
use std::io::{self, Write as _};

use cqrs_outbox::{OutboxError, OutboxErrorKind};

/// Why a command failed. Its `Display` has all causes.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    is_closed_output: bool,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_closed_output: false }
    }

    /// Set if the reader of the output has closed it.
    pub(crate) fn is_closed_output(&self) -> bool {
        self.is_closed_output
    }

    /// Adds what is known beside the error.
    pub(crate) fn with(mut self, note: impl fmt::Display) -> Self {
        self.text = format!("{}\n{note}", self.text);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<OutboxError> for Failure {
    fn from(error: OutboxError) -> Self {
        let failure = Self::new(chain(&error));
        match error.kind() {
            OutboxErrorKind::NotMigrated => failure.with(
                "Run `cqrs outbox migrate` to create the tables, or name the right ones with --schema and \
                 --prefix.",
            ),
            _ => failure,
        }
    }
}

/// Of the output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let is_closed_output = error.kind() == io::ErrorKind::BrokenPipe;
        Self { text: format!("writing the output: {error}"), is_closed_output }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// Writes a line to the error stream. A closed one is no failure of the command.
pub(crate) fn warn(line: impl fmt::Display) {
    let _closed = writeln!(io::stderr(), "{line}");
}
