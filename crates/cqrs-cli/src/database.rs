//! The connection to the database of an outbox, by its address.

use std::str::FromStr as _;
use std::time::Duration;

use cqrs_outbox::{MysqlOutbox, OutboxError, PostgresOutbox, SqliteOutbox, Tables};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

use crate::args::DatabaseArgs;
use crate::failure::{Failure, chain};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait for the lock of an SQLite file; sqlx panics above 24 days.
const MAX_BUSY_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// So much longer than this program the server works on a statement. It would not notice that its client is gone.
const SERVER_GRACE: Duration = Duration::from_secs(1);

/// The outbox of a database.
pub(crate) enum Database {
    Mysql(MysqlOutbox),
    Postgres(PostgresOutbox),
    Sqlite(SqliteOutbox),
}

/// The names of the tables.
pub(crate) fn tables(args: &DatabaseArgs) -> Result<Tables, Failure> {
    let mut tables = Tables::default().with_prefix(&args.prefix)?;
    if let Some(schema) = &args.schema {
        tables = tables.with_schema(schema)?;
    }
    Ok(tables)
}

/// Connects, for `migrate` or a command with a limit. No error shows the address, which may hold a password.
pub(crate) async fn connect(args: &DatabaseArgs, migrates: bool) -> Result<Database, Failure> {
    let Some(url) = &args.database else {
        return Err(Failure::new(
            "no database: set DATABASE_URL, or --database, to postgres://USER:PASSWORD@HOST/NAME, \
             mysql://USER:PASSWORD@HOST/NAME or sqlite:FILE",
        ));
    };
    let limit = (!migrates).then_some(args.timeout);
    let (url, tables) = (url.expose(), tables(args)?);
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => {
            let pool = postgres(url, limit).await?;
            Ok(Database::Postgres(PostgresOutbox::with_tables(pool, tables)?))
        }
        Some("mysql" | "mariadb") => {
            let pool = mysql(url, limit).await?;
            Ok(Database::Mysql(MysqlOutbox::with_tables(pool, tables)?))
        }
        Some("sqlite") => {
            let pool = sqlite(url, args.timeout, migrates).await?;
            Ok(Database::Sqlite(SqliteOutbox::with_tables(pool, tables)?))
        }
        _ => Err(Failure::new(
            "the address of the database begins with neither `postgres:`, `mysql:` nor `sqlite:`",
        )),
    }
}

async fn postgres(url: &str, limit: Option<Duration>) -> Result<sqlx::PgPool, Failure> {
    let options = PgConnectOptions::from_str(url).map_err(|_shows_the_address| {
        Failure::new(
            "the address of the database is not valid: write postgres://USER:PASSWORD@HOST:PORT/NAME, with \
             percent-encoding in the password",
        )
    })?;
    let limited = match limit {
        None => options.clone(),
        Some(limit) => {
            let millis = limit.saturating_add(SERVER_GRACE).as_millis();
            let millis = millis.min(i32::MAX as u128).to_string();
            options.clone().options([("statement_timeout", millis)])
        }
    };
    // A pool tries again until its timeout, and does not tell the cause.
    let options = match try_to_connect(limited.connect()).await {
        Ok(()) => limited,
        // A pooler refuses settings: protocol_violation.
        Err(NotConnected::Refused(error)) if limit.is_some() && has_code(&error, "08P01") => {
            try_to_connect(options.connect()).await?;
            options
        }
        Err(error) => return Err(error.into()),
    };
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
    Ok(pool.connect_lazy_with(options))
}

async fn mysql(url: &str, limit: Option<Duration>) -> Result<sqlx::MySqlPool, Failure> {
    let options = MySqlConnectOptions::from_str(url).map_err(|_shows_the_address| {
        Failure::new(
            "the address of the database is not valid: write mysql://USER:PASSWORD@HOST:PORT/NAME, with \
             percent-encoding in the password",
        )
    })?;
    try_to_connect(options.connect()).await?;
    let pool = MySqlPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
    let set = limit.map(mysql_limit);
    let pool = pool.after_connect(move |connection, _| {
        let set = set.clone();
        Box::pin(async move {
            match set {
                Some(set) => sqlx::raw_sql(AssertSqlSafe(set)).execute(connection).await.map(drop),
                None => Ok(()),
            }
        })
    });
    Ok(pool.connect_lazy_with(options))
}

/// The statement that limits those after it: on MariaDB all, on MySQL those that read and the waits for locks of
/// rows.
fn mysql_limit(limit: Duration) -> String {
    // A year, the most of MariaDB.
    let limit = limit.saturating_add(SERVER_GRACE).min(Duration::from_secs(31_536_000));
    let (seconds, millis) = (limit.as_secs_f64(), limit.as_millis().min(u32::MAX.into()));
    format!(
        "SET SESSION innodb_lock_wait_timeout = {} /*M! , max_statement_time = {seconds} */ \
         /*!80000 , max_execution_time = {millis} */",
        limit.as_secs().max(1)
    )
}

/// Creates the file if it `migrates`.
async fn sqlite(url: &str, limit: Duration, migrates: bool) -> Result<sqlx::SqlitePool, Failure> {
    let options = SqliteConnectOptions::from_str(url).map_err(|_shows_the_address| {
        Failure::new("the address of the database is not valid: write sqlite:FILE")
    })?;
    // Ends before the limit, as its error names the cause.
    let busy_timeout = limit.min(MAX_BUSY_TIMEOUT).mul_f64(0.9);
    let options = options.create_if_missing(migrates).busy_timeout(busy_timeout);
    try_to_connect(options.connect()).await.map_err(|error| {
        let failure = Failure::from(error);
        if migrates {
            failure
        } else {
            failure.with("`cqrs outbox migrate` creates the file of an SQLite database.")
        }
    })?;
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
    Ok(pool.connect_lazy_with(options))
}

/// An answer of the database, within the limit.
pub(crate) async fn answer<T>(
    limit: Duration,
    asking: impl Future<Output = Result<T, OutboxError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, asking).await {
        Ok(answered) => Ok(answered?),
        Err(_) => Err(Failure::no_answer(limit)),
    }
}

/// Why no connection was made.
enum NotConnected {
    Refused(sqlx::Error),
    NoAnswer,
}

impl From<NotConnected> for Failure {
    fn from(error: NotConnected) -> Self {
        let cause = match error {
            NotConnected::Refused(error) => chain(&error),
            NotConnected::NoAnswer => "no answer within 10 s".to_owned(),
        };
        Self::new(format!("connecting to the database: {cause}"))
    }
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    let of_database = error.as_database_error().and_then(|error| error.code());
    of_database.is_some_and(|of| of == code)
}

async fn try_to_connect<C: sqlx::Connection>(
    connecting: impl Future<Output = Result<C, sqlx::Error>>,
) -> Result<(), NotConnected> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    let connection = connected.map_err(|_elapsed| NotConnected::NoAnswer)?;
    let closed = connection.map_err(NotConnected::Refused)?.close().await;
    closed.map_err(NotConnected::Refused)
}
