//! The name of a table of others, quoted for SQL: python-cqrs's outbox and inbox, a Debezium connector's table.

use std::sync::Arc;

/// A table and its schema, by default that of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableName {
    schema: Option<Arc<str>>,
    table: Arc<str>,
}

impl TableName {
    pub(crate) fn new(table: &str) -> Self {
        Self { schema: None, table: table.into() }
    }

    pub(crate) fn set_schema(&mut self, schema: &str) {
        self.schema = Some(schema.into());
    }

    pub(crate) fn set_table(&mut self, table: &str) {
        self.table = table.into();
    }

    /// The name in SQL.
    pub(crate) fn sql(&self) -> String {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.table)),
            None => quoted(&self.table),
        }
    }

    /// Replaces `{t}` in `template` with the name.
    pub(crate) fn render(&self, template: &str) -> String {
        template.replace("{t}", &self.sql())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_quotes_stays_one_name() {
        let mut name = TableName::new("a\"; DROP TABLE users; --");
        assert_eq!(name.render("FROM {t}"), "FROM \"a\"\"; DROP TABLE users; --\"");
        name.set_schema("Orders");
        name.set_table("outbox");
        assert_eq!(name.sql(), "\"Orders\".\"outbox\"");
    }
}
