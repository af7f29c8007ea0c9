//! The errors of MySQL and MariaDB by their numbers; used by the errors of the outbox and its statements.

use sqlx::Error;
use sqlx::mysql::MySqlDatabaseError;

use crate::error_kind::OutboxErrorKind;

/// The number of an error of the server.
pub(crate) fn number(error: &Error) -> Option<u16> {
    let Error::Database(error) = error else { return None };
    error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// By the [number](https://mariadb.com/kb/en/mariadb-error-codes/), as several errors share a SQLSTATE. `None`:
/// it is no error of such a server.
pub(crate) fn kind(error: &Error) -> Option<OutboxErrorKind> {
    number(error).map(kind_of)
}

/// `true` if the server gave a statement up, as it took too long: ER_STATEMENT_TIMEOUT, ER_QUERY_TIMEOUT.
pub(crate) fn is_timeout(error: &Error) -> bool {
    matches!(number(error), Some(1969 | 3024))
}

fn kind_of(number: u16) -> OutboxErrorKind {
    match number {
        // ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, ER_LOCK_NOWAIT, ER_CHECKREAD (a changed row in a snapshot)
        1213 | 1205 | 3572 | 1020 => OutboxErrorKind::Conflict,
        // ER_NO_SUCH_TABLE, ER_BAD_DB_ERROR
        1146 | 1049 => OutboxErrorKind::NotMigrated,
        // Too many connections, shutdown, killed, interrupted, out of resources; a server that is read-only
        1040
        | 1041
        | 1053
        | 1077
        | 1152
        | 1158..=1161
        | 1184
        | 1203
        | 1226
        | 1290
        | 1317
        | 1792
        | 1836
        | 1927
        | 1969
        | 3024 => OutboxErrorKind::Unavailable,
        _ => OutboxErrorKind::Database,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tell_outage_conflict_and_missing_table() {
        assert_eq!(kind_of(1213), OutboxErrorKind::Conflict);
        assert_eq!(kind_of(1146), OutboxErrorKind::NotMigrated);
        assert_eq!(kind_of(1927), OutboxErrorKind::Unavailable);
        assert_eq!(kind_of(1062), OutboxErrorKind::Database);
    }
}
