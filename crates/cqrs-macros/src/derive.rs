//! The derives of this crate, and the attribute keys that each reads.

/// A derive of this crate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Derive {
    Command,
    Query,
    DomainEvent,
    Notification,
}

impl Derive {
    const ALL: [Self; 4] = [Self::Command, Self::Query, Self::DomainEvent, Self::Notification];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Command => "Command",
            Self::Query => "Query",
            Self::DomainEvent => "DomainEvent",
            Self::Notification => "Notification",
        }
    }

    /// The keys of `#[cqrs(..)]` that the derive reads.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Command | Self::Query => &["response", "error", "name", "crate"],
            Self::DomainEvent => &["name", "crate"],
            Self::Notification => &["name", "topic", "key", "serializer", "mandatory", "crate"],
        }
    }

    pub(crate) fn reads(self, key: &str) -> bool {
        self.keys().contains(&key)
    }

    /// The error text for a `key` that this derive does not read.
    pub(crate) fn refusal(self, key: &str) -> String {
        let quoted = self.keys().iter().map(|key| format!("`{key}`")).collect::<Vec<_>>();
        let readers: Vec<_> = Self::ALL
            .iter()
            .filter(|derive| derive.reads(key))
            .map(|derive| format!("`#[derive({})]`", derive.name()))
            .collect();
        let refused = match readers.is_empty() {
            true => format!("unknown key `{key}`"),
            false => format!("`{key}` is a key of {}", readers.join(" and ")),
        };
        format!("{refused}; `#[derive({})]` reads {}", self.name(), quoted.join(", "))
    }
}
