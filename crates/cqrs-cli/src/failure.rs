//! [`Failure`]: why a command failed, and what to do; used by all commands.

use std::error::Error;
use std::fmt;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::error::ContextKind;
use cqrs_outbox::{OutboxError, OutboxErrorKind};

/// Why a command failed. Its `Display` has all causes.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    is_closed_output: bool,
    is_retryable: bool,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_closed_output: false, is_retryable: false }
    }

    /// The database did not answer within the limit.
    pub(crate) fn no_answer(limit: Duration) -> Self {
        let limit = humantime::format_duration(limit);
        let text = format!("no answer of the database within {limit}; --timeout sets the limit");
        Self { text, is_closed_output: false, is_retryable: true }
    }

    /// Set if the same may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        self.is_retryable
    }

    /// Set if the reader of the output has closed it.
    pub(crate) fn is_closed_output(&self) -> bool {
        self.is_closed_output
    }

    /// Itself, unless the reader of the output has closed it.
    pub(crate) fn unless_closed_output(self) -> Result<(), Self> {
        if self.is_closed_output { Ok(()) } else { Err(self) }
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
        let is_retryable = error.is_retryable();
        let failure = Self { text: chain(&error), is_closed_output: false, is_retryable };
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
        let text = format!("writing the output: {error}");
        Self { text, is_closed_output, is_retryable: false }
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

/// An error of the command line. It does not show arguments that may be an address with a password.
pub(crate) fn usage(error: &clap::Error) -> Option<String> {
    let text = error.to_string();
    if !text.contains("://") && !text.contains('@') {
        return None;
    }
    let mut lines =
        vec![format!("error: {}: it looks like an address, and is not shown", error.kind())];
    lines.extend(error.get(ContextKind::Usage).map(|usage| usage.to_string()));
    lines.push(
        "The address of the database is --database URL, or DATABASE_URL. See --help.".to_owned(),
    );
    Some(lines.join("\n\n"))
}

/// Writes a line to the error stream. A closed one is no failure of the command.
pub(crate) fn warn(line: impl fmt::Display) {
    let _closed = writeln!(io::stderr(), "{line}");
}
