//! The connection to the database of an outbox, by its address.

use std::str::FromStr as _;
use std::time::Duration;

use cqrs_outbox::{OutboxError, PostgresOutbox, SqliteOutbox, Tables};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use crate::args::DatabaseArgs;
use crate::failure::{Failure, chain};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait for the lock of an SQLite file; sqlx panics above 24 days.
const MAX_BUSY_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The outbox of a database.
pub(crate) enum Database {
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

/// Connects, and creates the file of an SQLite database if `creates`. No error shows the address, which may
/// hold a password.
pub(crate) async fn connect(args: &DatabaseArgs, creates: bool) -> Result<Database, Failure> {
    let Some(url) = &args.database else {
        return Err(Failure::new(
            "no database: set DATABASE_URL, or --database, to postgres://USER:PASSWORD@HOST/NAME or sqlite:FILE",
        ));
    };
    let (url, tables) = (url.expose(), tables(args)?);
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        let options = PgConnectOptions::from_str(url).map_err(|_shows_the_address| {
            Failure::new(
                "the address of the database is not valid: write postgres://USER:PASSWORD@HOST:PORT/NAME, with \
                 percent-encoding in the password",
            )
        })?;
        // A pool tries again until its timeout, and does not tell the cause.
        try_to_connect(options.connect()).await?;
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
        let pool = pool.connect_lazy_with(options);
        Ok(Database::Postgres(PostgresOutbox::with_tables(pool, tables)?))
    } else if url.starts_with("sqlite:") {
        let options = SqliteConnectOptions::from_str(url).map_err(|_shows_the_address| {
            Failure::new("the address of the database is not valid: write sqlite:FILE")
        })?;
        // Ends before the limit, as its error names the cause.
        let busy_timeout = args.timeout.min(MAX_BUSY_TIMEOUT).mul_f64(0.9);
        let options = options.create_if_missing(creates).busy_timeout(busy_timeout);
        try_to_connect(options.connect()).await.map_err(|failure| {
            if creates {
                failure
            } else {
                failure.with("`cqrs outbox migrate` creates the file of an SQLite database.")
            }
        })?;
        let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
        let pool = pool.connect_lazy_with(options);
        Ok(Database::Sqlite(SqliteOutbox::with_tables(pool, tables)?))
    } else {
        Err(Failure::new(
            "the address of the database begins with neither `postgres:` nor `sqlite:`",
        ))
    }
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

async fn try_to_connect<C: sqlx::Connection>(
    connecting: impl Future<Output = Result<C, sqlx::Error>>,
) -> Result<(), Failure> {
    let failed = |cause: String| Failure::new(format!("connecting to the database: {cause}"));
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection.close().await.map_err(|error| failed(chain(&error))),
        Ok(Err(error)) => Err(failed(chain(&error))),
        Err(_) => Err(failed("no answer within 10 s".to_owned())),
    }
}
