//! [`Name`]: a topic, group or pattern in any form of text, accepted by messages and subscriptions.

use std::borrow::Cow;
use std::sync::Arc;

/// The name of a topic, a group or a subscription, made from any form of text. An `Arc<str>` is not
/// copied.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(pub(crate) Arc<str>);

impl From<Name> for Arc<str> {
    fn from(name: Name) -> Self {
        name.0
    }
}

crate::from_values! { Name:
    Arc<str> = |name| Self(name),
    &Arc<str> = |name| Self(Arc::clone(name)),
    Box<str> = |name| Self(name.into()),
    Cow<'_, str> = |name| Self(name.into()),
    String = |name| Self(name.into()),
    &String = |name| Self(name.as_str().into()),
    &str = |name| Self(name.into()),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_text_is_accepted() {
        let (owned, shared) = (String::from("orders"), Arc::<str>::from("orders"));
        let same = Arc::<str>::from(Name::from(&shared));
        assert!(Arc::ptr_eq(&same, &shared));
        for name in [
            Name::from("orders"),
            Name::from(&owned),
            Name::from(Cow::from("orders")),
            Name::from(Box::<str>::from("orders")),
            Name::from(shared),
            Name::from(owned),
        ] {
            assert_eq!(&*Arc::<str>::from(name), "orders");
        }
    }
}
