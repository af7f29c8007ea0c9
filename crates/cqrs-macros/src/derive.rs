//! The four derives, the `#[cqrs(..)]` keys that each accepts, and the error for another key.

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

    /// The keys of `#[cqrs(..)]` that the derive accepts.
    fn accepted_keys(self) -> &'static [&'static str] {
        match self {
            Self::Command | Self::Query => &["response", "error", "name", "crate"],
            Self::DomainEvent => &["name", "crate"],
            Self::Notification => &["name", "topic", "key", "serializer", "mandatory", "crate"],
        }
    }

    pub(crate) fn accepts(self, key: &str) -> bool {
        self.accepted_keys().contains(&key)
    }

    /// The error text for a `key` that this derive does not accept.
    pub(crate) fn unsupported_key(self, key: &str) -> String {
        let accepted =
            self.accepted_keys().iter().map(|key| format!("`{key}`")).collect::<Vec<_>>();
        let accepted_by: Vec<_> = Self::ALL
            .iter()
            .filter(|derive| derive.accepts(key))
            .map(|derive| format!("`#[derive({})]`", derive.name()))
            .collect();
        let reason = match accepted_by.is_empty() {
            true => format!("unknown key `{key}`"),
            false => format!("`{key}` is a key of {}", accepted_by.join(" and ")),
        };
        format!("{reason}; `#[derive({})]` accepts {}", self.name(), accepted.join(", "))
    }
}
