//! The names of the tables, and the SQL dialects.

use std::borrow::Cow;

use crate::error::OutboxError;

/// The SQL dialect of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// PostgreSQL 15 and later.
    Postgres,
    /// MySQL 8.0 and later, MariaDB 10.6 and later.
    Mysql,
    /// SQLite 3.42 and later.
    Sqlite,
}

impl Dialect {
    /// The number of lanes: 64, and 1 on SQLite, which has one writer.
    pub fn lanes(self) -> u16 {
        match self {
            Self::Postgres | Self::Mysql => 64,
            Self::Sqlite => 1,
        }
    }

    /// Encloses a name.
    fn quote(self) -> char {
        match self {
            Self::Mysql => '`',
            Self::Postgres | Self::Sqlite => '"',
        }
    }
}

/// What the statement of an insert has beside the ten parameters of [`Tables::insert`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Columns {
    /// The size of each body before its compression, for each row.
    pub(crate) is_compressed: bool,
    /// PostgreSQL: the numbers of the locks to take, once.
    pub(crate) has_locks: bool,
}

/// The names of the outbox's and inbox's tables: a schema, by default that of the connection, and a prefix,
/// `cqrs_` by default.
///
/// ```
/// let tables = cqrs_outbox::Tables::default().with_schema("orders")?.with_prefix("events_")?;
/// assert_eq!(tables.name("outbox"), r#""orders".events_outbox"#);
/// # Ok::<(), cqrs_outbox::OutboxError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    schema: Option<String>,
    prefix: Cow<'static, str>,
    /// Of an outbox: its database. Decides how the schema is quoted.
    dialect: Dialect,
}

impl Default for Tables {
    fn default() -> Self {
        Self { schema: None, prefix: Cow::Borrowed("cqrs_"), dialect: Dialect::Postgres }
    }
}

impl Tables {
    /// Sets the schema: on MySQL the database. Not on SQLite, which has none.
    ///
    /// # Errors
    /// If it is not made of `a` to `z`, digits and `_`, or is longer than 40 characters.
    pub fn with_schema(mut self, schema: impl Into<String>) -> Result<Self, OutboxError> {
        let schema = schema.into();
        check(&schema)?;
        self.schema = Some(schema);
        Ok(self)
    }

    /// Sets the prefix of the tables' names. It may be empty.
    ///
    /// # Errors
    /// As [`with_schema`](Self::with_schema).
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Result<Self, OutboxError> {
        let prefix = prefix.into();
        if !prefix.is_empty() {
            check(&prefix)?;
        }
        self.prefix = Cow::Owned(prefix);
        Ok(self)
    }

    /// The schema, if one is set.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The name of a table in SQL, with schema and prefix: `outbox`, `outbox_parked`, `outbox_dead`,
    /// `outbox_relay`, `outbox_lane`, `inbox` or `migrations`; on PostgreSQL also `outbox_done`. The tables of an
    /// [outbox](crate::Outbox::tables) quote the schema as its database does, all others as PostgreSQL.
    pub fn name(&self, table: &str) -> String {
        self.name_for(self.dialect, table)
    }

    fn name_for(&self, dialect: Dialect, table: &str) -> String {
        let quote = dialect.quote();
        let name = self.without_schema(table);
        match &self.schema {
            Some(schema) => format!("{quote}{schema}{quote}.{name}"),
            None => name,
        }
    }

    /// The name of a table with its prefix.
    pub(crate) fn without_schema(&self, table: &str) -> String {
        format!("{}{table}", self.prefix)
    }

    /// The tables of an outbox on this database.
    pub(crate) fn of(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// The statement that inserts `rows` rows, for any driver.
    ///
    /// On PostgreSQL it has ten parameters, whatever the number of rows: the fields of
    /// [`NewRow`](crate::NewRow) in their order, each an array over the rows. On MySQL and SQLite it has ten
    /// for each row: the fields of the first row, then those of the second, and so on. Run it last in the
    /// transaction: then the ids of a key are in order of commit, if its writers wait for each other.
    pub fn insert(&self, dialect: Dialect, rows: usize) -> String {
        self.insert_with(dialect, rows, Columns::default())
    }

    /// As [`insert`](Self::insert), with more parameters behind the ten.
    pub(crate) fn insert_with(&self, dialect: Dialect, rows: usize, columns: Columns) -> String {
        let Columns { is_compressed, has_locks } = columns;
        let size = if is_compressed { ", uncompressed_size" } else { "" };
        match dialect {
            Dialect::Postgres => {
                let sizes = if is_compressed { ", $11::int4[]" } else { "" };
                // The function locks in the order of the array.
                let locks = if has_locks {
                    let number = if is_compressed { 12 } else { 11 };
                    format!(
                        " FROM (SELECT count(pg_advisory_xact_lock('{{t}}outbox'::regclass::oid::int4, \
                         number)) AS locks FROM unnest(${number}::int4[]) AS q (number)) l \
                         WHERE l.locks IS NOT NULL"
                    )
                } else {
                    String::new()
                };
                self.render_for(
                    dialect,
                    // The transaction takes its number, and its locks, before its ids: the relay's late reads rely
                    // on it.
                    &format!(
                        "WITH own AS MATERIALIZED (SELECT pg_current_xact_id() AS xid{locks}) \
                         INSERT INTO {{t}}outbox (lane, event_id, name, topic, key, content_type, headers, \
                         body, occurred_at, mandatory{size}) \
                         SELECT lane, event_id, name, topic, key, content_type, headers::json, body, \
                         timestamptz 'epoch' + occurred_at * interval '1 microsecond', mandatory{size} \
                         FROM own, unnest($1::int2[], $2::uuid[], $3::text[], $4::text[], $5::bytea[], \
                         $6::text[], $7::text[], $8::bytea[], $9::int8[], $10::bool[]{sizes}) \
                         WITH ORDINALITY AS r (lane, event_id, name, topic, key, content_type, headers, \
                         body, occurred_at, mandatory{size}, number) \
                         WHERE own.xid IS NOT NULL ORDER BY number"
                    ),
                )
            }
            Dialect::Mysql => {
                let now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";
                let sizes = if is_compressed { ", ?" } else { "" };
                let row = format!("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?{sizes}, {now})");
                self.render_for(
                    dialect,
                    &format!(
                        "INSERT INTO {{t}}outbox (lane, event_id, name, topic, `key`, content_type, \
                         headers, body, occurred_at, mandatory{size}, created_at) VALUES "
                    ),
                ) + &vec![row; rows].join(", ")
            }
            Dialect::Sqlite => {
                let sizes = if is_compressed { ", ?" } else { "" };
                let row = format!("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?{sizes})");
                self.render_for(
                    dialect,
                    &format!(
                        "INSERT INTO {{t}}outbox (lane, event_id, name, topic, key, content_type, \
                         headers, body, occurred_at, mandatory{size}) VALUES "
                    ),
                ) + &vec![row; rows].join(", ")
            }
        }
    }

    /// Replaces `{t}` in `template` with schema and prefix.
    pub(crate) fn render(&self, template: &str) -> String {
        self.render_for(self.dialect, template)
    }

    /// As [`render`](Self::render), for a database.
    pub(crate) fn render_for(&self, dialect: Dialect, template: &str) -> String {
        template.replace("{t}", &self.name_for(dialect, ""))
    }
}

/// So that names need no quotes, except a schema that is a reserved word.
fn check(name: &str) -> Result<(), OutboxError> {
    let is_valid = name.len() <= 40
        && name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    match is_valid {
        true => Ok(()),
        false => Err(OutboxError::config(format!(
            "{name:?} is no name of a schema or prefix here: use at most 40 of a-z, 0-9 and _, not \
             beginning with a digit"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_need_quotes_are_refused() {
        for bad in ["", "a-b", "A", "1a", "a\"; DROP TABLE users; --", &"a".repeat(41)] {
            assert!(Tables::default().with_schema(bad).is_err(), "{bad}");
        }
        let tables = Tables::default().with_schema("user").unwrap().with_prefix("").unwrap();
        assert_eq!(tables.render("DELETE FROM {t}inbox"), "DELETE FROM \"user\".inbox");
        let tables = tables.of(Dialect::Mysql);
        assert_eq!(tables.render("DELETE FROM {t}inbox"), "DELETE FROM `user`.inbox");
    }
}
