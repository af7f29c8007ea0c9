//! The arguments of the command line.

use std::convert::Infallible;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use cqrs_config::{Secret, parse_duration};
use cqrs_outbox::{Dialect, FailedFilter};

#[derive(Debug, Parser)]
#[command(
    name = "cqrs",
    version,
    about = "The command line of the cqrs framework",
    after_help = "Exit codes: 0 done, 1 an error, 2 a threshold of `status` is exceeded, 130 stopped by Ctrl-C \
                  before the end."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) group: Group,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// Looks at a transactional outbox, and handles its dead rows.
    Outbox(OutboxArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct OutboxArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DatabaseArgs {
    /// The address: postgres://USER:PASSWORD@HOST/NAME, mysql://USER:PASSWORD@HOST/NAME (MariaDB, too) or
    /// sqlite:FILE. Other users of the machine can see arguments: set the variable if it has a password.
    #[arg(
        long,
        value_name = "URL",
        env = "DATABASE_URL",
        hide_env_values = true,
        value_parser = secret,
        global = true
    )]
    pub(crate) database: Option<Secret>,
    /// The schema of the tables, on MySQL their database. Default: that of the connection.
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) schema: Option<String>,
    /// The prefix of the tables' names.
    #[arg(long, value_name = "TEXT", default_value = "cqrs_", global = true)]
    pub(crate) prefix: String,
    /// How long an answer of the database may take. `migrate` has no limit.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = limit, global = true)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Counts the rows, and lists the relays.
    Status(StatusArgs),
    /// Lists the rows that were refused for good.
    Dead(ListArgs),
    /// Lists the rows of keys that fail now.
    Parked(ListArgs),
    /// Shows a dead or parked row with its headers.
    Show(ShowArgs),
    /// Puts dead rows back into the outbox, to be published again.
    Replay(ReplayArgs),
    /// Deletes old dead rows.
    Purge(PurgeArgs),
    /// Creates the tables, or brings them to this version.
    Migrate,
    /// Prints the SQL of the tables, for another tool to run.
    Sql(SqlArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Refreshes until Ctrl-C.
    #[arg(long, conflicts_with_all = ["max_oldest", "max_dead", "max_parked"])]
    pub(crate) watch: bool,
    /// The time between two refreshes. Each one scans the tables.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration, requires = "watch")]
    pub(crate) interval: Duration,
    /// Exits with 2 if the oldest pending row is older than this.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) max_oldest: Option<Duration>,
    /// Exits with 2 if there are more dead rows.
    #[arg(long, value_name = "ROWS")]
    pub(crate) max_dead: Option<u64>,
    /// Exits with 2 if there are more parked rows.
    #[arg(long, value_name = "ROWS")]
    pub(crate) max_parked: Option<u64>,
    /// A relay is alive if it was seen more recently than this: the lease of the relays.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) lease: Duration,
}

/// Which rows.
#[derive(Debug, clap::Args)]
pub(crate) struct FilterArgs {
    /// Rows of this topic.
    #[arg(long)]
    pub(crate) topic: Option<String>,
    /// Rows of the event with this name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Rows whose last error contains this text.
    #[arg(long, value_name = "TEXT")]
    pub(crate) error: Option<String>,
}

impl FilterArgs {
    pub(crate) fn filter(&self) -> FailedFilter {
        let mut filter = FailedFilter::default();
        if let Some(topic) = &self.topic {
            filter = filter.topic(topic);
        }
        if let Some(name) = &self.name {
            filter = filter.name(name);
        }
        if let Some(error) = &self.error {
            filter = filter.error(error);
        }
        filter
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// The most rows to list.
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    pub(crate) limit: u32,
    /// Rows with ids above this one.
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub(crate) after: i64,
    /// Prints JSON, one object in a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The id, as the lists have it.
    pub(crate) id: i64,
    /// Shows the body, too.
    #[arg(long)]
    pub(crate) body: bool,
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// Rows with these ids.
    #[arg(long = "id", value_name = "ID", num_args = 1.., value_delimiter = ',', required_unless_present = "all")]
    pub(crate) ids: Vec<i64>,
    /// All rows that are dead now and meet the other options.
    #[arg(long, conflicts_with = "ids")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PurgeArgs {
    /// Rows that died longer ago than this, such as 30d.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) older_than: Duration,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
}

/// Whether to do it.
#[derive(Debug, clap::Args)]
pub(crate) struct ConsentArgs {
    /// Does not ask.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Counts the rows and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SqlArgs {
    /// The database.
    pub(crate) dialect: DialectArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DialectArg {
    /// PostgreSQL 15 and later.
    Postgres,
    /// MySQL 8.0, MariaDB 10.6, and later.
    Mysql,
    /// SQLite.
    Sqlite,
}

impl From<DialectArg> for Dialect {
    fn from(dialect: DialectArg) -> Self {
        match dialect {
            DialectArg::Postgres => Self::Postgres,
            DialectArg::Mysql => Self::Mysql,
            DialectArg::Sqlite => Self::Sqlite,
        }
    }
}

/// Accepts every address: an error of clap would show it.
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(str::to_owned)
}

fn limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be above 0, such as 30s".to_owned()),
        limit => Ok(limit),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Args::command().debug_assert();
    }

    /// The commands below `command`, without clap's `help`.
    fn commands(command: &clap::Command) -> Vec<&clap::Command> {
        let own = command.get_subcommands().filter(|command| command.get_name() != "help");
        own.flat_map(|command| [vec![command], commands(command)].concat()).collect()
    }

    #[test]
    fn page_has_every_command_and_option() {
        let page = include_str!("../../../docs/reference/cli.md");
        let mut command = Args::command();
        command.build();
        let all = commands(&command);
        assert!(all.len() > 8, "{all:?}");
        for command in all {
            let name = command.get_name();
            assert!(
                page.contains(&format!("`{name}")) || page.contains(&format!(" {name}")),
                "{name}"
            );
            let options = command.get_arguments().filter_map(|option| option.get_long());
            for option in options.filter(|option| !["help", "version"].contains(option)) {
                assert!(page.contains(&format!("`--{option}")), "--{option} of {name}");
            }
        }
        for word in page.split('`').skip(1).step_by(2).filter_map(|text| text.strip_prefix("--")) {
            let option = word.split(' ').next().unwrap();
            let is_there = |command: &&clap::Command| {
                command.get_arguments().any(|known| known.get_long() == Some(option))
            };
            assert!(commands(&command).iter().any(is_there), "no command has --{option}");
        }
    }

    #[test]
    fn address_is_hidden_in_debug() {
        let url = "postgres://ada:tellnobody@host/shop";
        let args = Args::try_parse_from(["cqrs", "outbox", "--database", url, "migrate"]).unwrap();
        let text = format!("{args:?}");
        assert!(!text.contains("tellnobody") && text.contains("***"), "{text}");
    }
}
