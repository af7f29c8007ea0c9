//! The error of the outbox and the inbox: what failed, its kind, and the cause.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::time::Duration;

pub use crate::error_kind::OutboxErrorKind;
#[cfg(feature = "mysql")]
use crate::mysql_errors as mysql;

/// An operation of the outbox or the inbox that failed.
///
/// `Display` names the operation and the remedy; the database's own error is the `source()`. Payloads are
/// never shown.
#[derive(Debug)]
pub struct OutboxError {
    kind: OutboxErrorKind,
    doing: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl OutboxError {
    /// An error of the database during `doing`.
    pub(crate) fn database(doing: &'static str, error: sqlx::Error) -> Self {
        let kind = kind_of(&error);
        Self { kind, doing: doing.into(), source: Some(error.into()) }
    }

    /// The server ended the transaction before `doing`.
    pub(crate) fn ended(doing: &'static str, error: sqlx::Error) -> Self {
        let kind = OutboxErrorKind::TransactionEnded;
        Self { kind, doing: doing.into(), source: Some(error.into()) }
    }

    /// A statement that was given up after `limit`.
    pub(crate) fn no_answer(doing: &'static str, limit: Duration) -> Self {
        let source = Some(NoAnswer(limit).into());
        Self { kind: OutboxErrorKind::Unavailable, doing: doing.into(), source }
    }

    /// `true` if the statement was given up here or by the server, as it took too long.
    pub(crate) fn is_timeout(&self) -> bool {
        let Some(source) = &self.source else { return false };
        let is_canceled = |error: &sqlx::Error| {
            error.as_database_error().and_then(|error| error.code()).as_deref() == Some("57014")
        };
        source.is::<NoAnswer>()
            || source
                .downcast_ref()
                .is_some_and(|error| is_canceled(error) || mysql::is_timeout(error))
    }

    pub(crate) fn config(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: OutboxErrorKind::Config, doing: detail.into(), source: None }
    }

    pub(crate) fn serialize(error: cqrs_core::codec::SerializeError) -> Self {
        let doing = "writing an event to the outbox".into();
        Self { kind: OutboxErrorKind::Serialize, doing, source: Some(error.into()) }
    }

    /// The kind of error.
    pub fn kind(&self) -> OutboxErrorKind {
        self.kind
    }

    /// `true` if the same operation may succeed later, in a new transaction.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, OutboxErrorKind::Unavailable | OutboxErrorKind::Conflict)
    }
}

/// A statement had no answer for so long.
#[derive(Debug)]
struct NoAnswer(Duration);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {:?}", self.0)
    }
}

impl Error for NoAnswer {}

impl fmt::Display for OutboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = &self.doing;
        match self.kind {
            OutboxErrorKind::Unavailable => write!(f, "{doing}: the database is away"),
            OutboxErrorKind::Conflict => {
                write!(f, "{doing}: another transaction was in the way; run it again")
            }
            OutboxErrorKind::TransactionEnded => {
                write!(
                    f,
                    "{doing}: the transaction had ended before; run no statement in it that commits implicitly \
                     (DDL), and ignore no deadlock"
                )
            }
            OutboxErrorKind::NotMigrated => {
                write!(
                    f,
                    "{doing}: a table is missing; create it (`migrate()`), or set the right schema and name"
                )
            }
            OutboxErrorKind::Database => write!(f, "{doing}: the database refused it"),
            OutboxErrorKind::Serialize | OutboxErrorKind::Config => f.write_str(doing),
        }
    }
}

impl Error for OutboxError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

fn kind_of(error: &sqlx::Error) -> OutboxErrorKind {
    if let Some(kind) = mysql::kind(error) {
        return kind;
    }
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => OutboxErrorKind::Unavailable,
        sqlx::Error::Database(error) => error.code().map_or(OutboxErrorKind::Database, |code| {
            if code.len() == 5 {
                kind_of_state(&code)
            } else {
                kind_of_sqlite(&code, error.message())
            }
        }),
        _ => OutboxErrorKind::Database,
    }
}

/// By the SQLSTATE code ([PostgreSQL, Appendix A](https://www.postgresql.org/docs/current/errcodes-appendix.html)).
fn kind_of_state(code: &str) -> OutboxErrorKind {
    match code {
        // serialization_failure, deadlock_detected, lock_not_available; query_canceled: by a statement timeout,
        // mostly, while it waited for a lock
        "40001" | "40P01" | "55P03" | "57014" => OutboxErrorKind::Conflict,
        // undefined_table, invalid_schema_name
        "42P01" | "3F000" => OutboxErrorKind::NotMigrated,
        // admin_shutdown, crash_shutdown, cannot_connect_now; a server in recovery is read-only
        "57P01" | "57P02" | "57P03" | "25006" => OutboxErrorKind::Unavailable,
        // connection exception, insufficient resources (too many connections)
        _ if code.starts_with("08") || code.starts_with("53") => OutboxErrorKind::Unavailable,
        _ => OutboxErrorKind::Database,
    }
}

/// By the lowest byte of the [extended result code](https://www.sqlite.org/rescode.html). A missing table has
/// no code of its own.
fn kind_of_sqlite(code: &str, message: &str) -> OutboxErrorKind {
    const ERROR: i32 = 1;
    const BUSY: i32 = 5;
    const LOCKED: i32 = 6;
    match code.parse::<i32>().map(|code| code & 0xff) {
        Ok(BUSY | LOCKED) => OutboxErrorKind::Conflict,
        Ok(ERROR) if message.starts_with("no such table") => OutboxErrorKind::NotMigrated,
        _ => OutboxErrorKind::Database,
    }
}

/// Without the feature there is no such error.
#[cfg(not(feature = "mysql"))]
mod mysql {
    pub(super) fn kind(_error: &sqlx::Error) -> Option<super::OutboxErrorKind> {
        None
    }

    pub(super) fn is_timeout(_error: &sqlx::Error) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_outage_conflict_and_missing_table() {
        assert_eq!(kind_of_state("57P01"), OutboxErrorKind::Unavailable);
        assert_eq!(kind_of_state("08006"), OutboxErrorKind::Unavailable);
        assert_eq!(kind_of_state("40P01"), OutboxErrorKind::Conflict);
        assert_eq!(kind_of_state("42P01"), OutboxErrorKind::NotMigrated);
        assert_eq!(kind_of_state("23505"), OutboxErrorKind::Database);
        // SQLITE_BUSY_SNAPSHOT
        assert_eq!(kind_of_sqlite("517", "database is locked"), OutboxErrorKind::Conflict);
        assert_eq!(kind_of_sqlite("1", "no such column: x"), OutboxErrorKind::Database);
        let missing = kind_of_sqlite("1", "no such table: cqrs_outbox");
        assert_eq!(missing, OutboxErrorKind::NotMigrated);
    }
}
