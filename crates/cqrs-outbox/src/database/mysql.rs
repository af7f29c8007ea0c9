//! The statements of MySQL and MariaDB.

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Error, MySql, MySqlConnection, MySqlPool};
use uuid::Uuid;

use super::Backend;
use super::mysql_list::json;
use crate::error_kind::OutboxErrorKind;
use crate::migrate::Migration;
use crate::mysql_errors::{kind, number};
use crate::row::NewRow;
use crate::tables::{Columns, Dialect, Tables};

/// Bounds of one insert: the statement has at most 65,535 parameters, up to eleven for each row, and a server takes
/// at most `max_allowed_packet` bytes, 16 MiB by default. A row above the second is alone.
const MAX_ROWS: usize = 1_000;
const MAX_BYTES: usize = 4 << 20;

/// The longest name of a consumer, in bytes.
const MAX_CONSUMER: usize = 1_020;

/// The present time, in microseconds, whatever the time zone of the session.
pub(crate) const NOW: &str = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";

/// Begins a transaction that locks no gaps between rows, where others insert theirs.
pub(crate) const BEGIN_READ_COMMITTED: &str =
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";

/// The longest that a migration waits for another one, in seconds.
const MIGRATION_WAIT: i32 = 600;

impl Backend for MySql {
    const DIALECT: Dialect = Dialect::Mysql;
    const MIGRATIONS: &'static [Migration] = Migration::MYSQL;
    /// The savepoint is gone when the server ends the transaction; see [`Backend::check_open`].
    const BEGIN: &'static str = "START TRANSACTION; SAVEPOINT cqrs_unit";
    const INSERT_NEEDS_TRANSACTION: bool = false;

    async fn insert(
        connection: &mut MySqlConnection,
        tables: &Tables,
        rows: &[NewRow<'_>],
        _locks: &[i32],
    ) -> Result<(), Error> {
        let mut rows = rows;
        let columns = Columns { is_compressed: NewRow::is_any_compressed(rows), has_locks: false };
        while !rows.is_empty() {
            let (now, later) = rows.split_at(batch(rows));
            let sql = tables.insert_with(Dialect::Mysql, now.len(), columns);
            let sql = AssertSqlSafe(sql);
            // The text depends on the number of rows: only the most frequent ones stay prepared.
            let mut query = sqlx::query(sql).persistent(now.len() <= 4);
            for row in now {
                query = query
                    .bind(row.lane)
                    .bind(row.event_id)
                    .bind(row.name)
                    .bind(row.topic)
                    .bind(row.key)
                    .bind(row.content_type)
                    .bind(row.headers.as_deref())
                    .bind(row.body)
                    .bind(row.occurred_at)
                    .bind(row.mandatory);
                if columns.is_compressed {
                    query = query.bind(row.uncompressed_size);
                }
            }
            query.execute(&mut *connection).await?;
            rows = later;
        }
        Ok(())
    }

    async fn mark(
        connection: &mut MySqlConnection,
        tables: &Tables,
        consumer: &str,
        message_id: Uuid,
    ) -> Result<bool, Error> {
        // A server that is not strict would cut the name to one that another consumer may have. So would
        // `INSERT IGNORE`.
        if consumer.len() > MAX_CONSUMER {
            let text = format!("the name of a consumer has more than {MAX_CONSUMER} bytes");
            return Err(Error::Encode(text.into()));
        }
        // A duplicate is changed, as the server counts an unchanged one like a new one.
        let sql = tables.render(&format!(
            "INSERT INTO {{t}}inbox (consumer, message_id, seen_at) VALUES (?, ?, {NOW}) \
             ON DUPLICATE KEY UPDATE seen_at = seen_at + 1"
        ));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(consumer).bind(message_id);
        Ok(query.execute(connection).await?.rows_affected() == 1)
    }

    async fn purge(
        pool: &MySqlPool,
        tables: &Tables,
        age_micros: i64,
        limit: i64,
    ) -> Result<u64, Error> {
        // Found without locks, and deleted by their keys: a delete that scans would wait for the handlers whose
        // marks it meets.
        let sql = tables.render(&format!(
            "SELECT HEX(consumer), HEX(message_id) FROM {{t}}inbox FORCE INDEX (seen_at) \
             WHERE seen_at < {NOW} - ? ORDER BY seen_at LIMIT ?"
        ));
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(age_micros).bind(limit);
        let marks: Vec<(String, String)> = query.fetch_all(pool).await?;
        let sql = tables.render(
            "DELETE i FROM JSON_TABLE(?, '$[*]' COLUMNS (consumer varchar(2040) PATH '$[0]', \
             message_id char(32) PATH '$[1]')) q STRAIGHT_JOIN {t}inbox i FORCE INDEX (PRIMARY) \
             ON i.consumer = UNHEX(q.consumer) AND i.message_id = UNHEX(q.message_id)",
        );
        let mut tx = pool.begin_with(BEGIN_READ_COMMITTED).await?;
        let query = sqlx::query(AssertSqlSafe(sql)).bind(json(&marks));
        let purged = query.execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        Ok(purged)
    }

    /// DDL commits the transaction, and a deadlock rolls it back. The statements after it are committed one by one.
    async fn check_open(connection: &mut MySqlConnection) -> Result<(), Error> {
        sqlx::raw_sql("RELEASE SAVEPOINT cqrs_unit; SAVEPOINT cqrs_unit")
            .execute(connection)
            .await?;
        Ok(())
    }

    /// ER_SP_DOES_NOT_EXIST: the savepoint.
    fn has_ended(error: &Error) -> bool {
        number(error) == Some(1305)
    }

    /// Refused before anything was written: a deadlock (of a cluster, found at the commit), a lock timeout, a
    /// server that is read-only, a member of a group that rolls back.
    fn is_certain(error: &Error) -> bool {
        matches!(number(error), Some(1213 | 1205 | 1290 | 1792 | 1836 | 3100 | 3101))
    }

    async fn migrate(pool: &MySqlPool, tables: &Tables) -> Result<(), Error> {
        let mut connection = pool.acquire().await?;
        if applied(&mut connection, tables).await? >= last_version() {
            return Ok(());
        }
        // The lock is the connection's, and gone with it, whatever happens.
        connection.close_on_drop();
        lock_migrations(&mut connection, tables).await?;
        create_tables(&mut connection, tables).await
    }
}

/// The number of rows of the next insert.
fn batch(rows: &[NewRow<'_>]) -> usize {
    let mut bytes = 0_usize;
    let fitting = rows.iter().take(MAX_ROWS).take_while(|row| {
        let headers = row.headers.as_ref().map_or(0, String::len);
        bytes = bytes.saturating_add(row.body.len() + headers + row.key.map_or(0, <[u8]>::len));
        bytes <= MAX_BYTES
    });
    fitting.count().max(1)
}

fn last_version() -> i32 {
    MySql::MIGRATIONS.last().map_or(0, |migration| migration.version)
}

/// The version of the tables; 0 if there are none.
async fn applied(connection: &mut MySqlConnection, tables: &Tables) -> Result<i32, Error> {
    let sql = tables.render("SELECT coalesce(max(version), 0) FROM {t}migrations");
    let applied = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await;
    match applied {
        Err(error) if kind(&error) == Some(OutboxErrorKind::NotMigrated) => Ok(0),
        applied => applied,
    }
}

async fn lock_migrations(
    connection: &mut PoolConnection<MySql>,
    tables: &Tables,
) -> Result<(), Error> {
    // A lock is the server's, not the database's, and its name has at most 64 characters.
    // Those of the tables' database: the connection's own may be another one.
    let sql = "SELECT GET_LOCK(CONCAT('cqrs_migrations_', \
               MD5(CONCAT_WS('.', COALESCE(?, DATABASE()), ?))), ?)";
    let table = tables.without_schema("migrations");
    let query = sqlx::query_scalar(sql).bind(tables.schema()).bind(table).bind(MIGRATION_WAIT);
    match query.fetch_one(&mut **connection).await? {
        Some(1_i64) => Ok(()),
        _ => Err(Error::Protocol(format!(
            "another process has not ended its migrations in {MIGRATION_WAIT} s"
        ))),
    }
}

async fn create_tables(connection: &mut MySqlConnection, tables: &Tables) -> Result<(), Error> {
    if let Some(schema) = tables.schema() {
        create_database(connection, schema).await?;
    }
    let sql = tables.render(
        "CREATE TABLE IF NOT EXISTS {t}migrations (version int NOT NULL PRIMARY KEY, \
         name varchar(255) NOT NULL, applied_at bigint NOT NULL) ENGINE = InnoDB",
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    let applied = applied(connection, tables).await?;
    for migration in MySql::MIGRATIONS.iter().filter(|migration| migration.version > applied) {
        let sql = tables.render(migration.template);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        let sql = tables.render(&format!(
            "INSERT INTO {{t}}migrations (version, name, applied_at) VALUES (?, ?, {NOW})"
        ));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(migration.version).bind(migration.name);
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Not `IF NOT EXISTS`, which asks for the right to create one even if it exists.
async fn create_database(connection: &mut MySqlConnection, schema: &str) -> Result<(), Error> {
    let sql = "SELECT count(*) FROM information_schema.schemata WHERE schema_name = ?";
    let query = sqlx::query_scalar::<_, i64>(sql).bind(schema);
    if query.fetch_one(&mut *connection).await? == 0 {
        let sql = format!("CREATE DATABASE `{schema}`");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cqrs_core::Message;

    use super::*;

    #[test]
    fn insert_is_bounded_in_rows_and_bytes() {
        let rows = |sizes: &[usize]| {
            let messages: Vec<_> =
                sizes.iter().map(|size| Message::new("t", Bytes::from(vec![0; *size]))).collect();
            let rows: Vec<_> =
                messages.iter().map(|message| NewRow::new(message, Dialect::Mysql)).collect();
            batch(&rows)
        };
        assert_eq!(rows(&[1; 1_001]), MAX_ROWS);
        assert_eq!(rows(&[MAX_BYTES, 1]), 1);
        assert_eq!(rows(&[1, MAX_BYTES]), 1);
        assert_eq!(rows(&[MAX_BYTES + 1, 1]), 1);
    }
}
