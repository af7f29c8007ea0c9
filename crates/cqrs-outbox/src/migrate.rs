//! The migrations of the tables. Not sqlx's own migrator: two crates on its one version table collide.

use std::fmt;

use crate::tables::{Dialect, Tables};

/// A migration of the tables. See [`Tables::migrations`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migration {
    /// Its number, from 1.
    pub version: i32,
    /// Its name.
    pub name: &'static str,
    /// Its statements, in which `{t}` stands for schema and prefix.
    pub(crate) template: &'static str,
}

impl Migration {
    pub(crate) const POSTGRES: &'static [Self] = &[
        Self {
            version: 1,
            name: "outbox",
            template: include_str!("../migrations/postgres/0001_outbox.sql"),
        },
        Self {
            version: 2,
            name: "history",
            template: include_str!("../migrations/postgres/0002_history.sql"),
        },
    ];

    pub(crate) const MYSQL: &'static [Self] = &[Self {
        version: 1,
        name: "outbox",
        template: include_str!("../migrations/mysql/0001_outbox.sql"),
    }];

    pub(crate) const SQLITE: &'static [Self] = &[Self {
        version: 1,
        name: "outbox",
        template: include_str!("../migrations/sqlite/0001_outbox.sql"),
    }];
}

impl fmt::Debug for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Migration({:04}_{})", self.version, self.name)
    }
}

impl Tables {
    /// The migrations of these tables and their SQL, for those who run them with a tool of their own instead
    /// of [`Outbox::migrate`](crate::Outbox::migrate).
    pub fn migrations(&self, dialect: Dialect) -> Vec<(Migration, String)> {
        let migrations = match dialect {
            Dialect::Postgres => Migration::POSTGRES,
            Dialect::Mysql => Migration::MYSQL,
            Dialect::Sqlite => Migration::SQLITE,
        };
        let render = |migration: &Migration| self.render_for(dialect, migration.template);
        migrations.iter().map(|migration| (*migration, render(migration))).collect()
    }
}
