//! A deserializer that chooses another one by content type or rule.

use std::borrow::Cow;
use std::fmt;

use super::deserializer::Deserializer;
use super::error::DeserializeError;
use crate::consume::Incoming;
use crate::event::{Notification, NotificationEvent};
use crate::message::content_type;

/// Reads each message with the deserializer for its content type, for topics on which some services write
/// JSON and others Protobuf.
///
/// In this order: the first [`media_type`](Self::media_type) that is the message's, the first
/// [`when`](Self::when) that is true, the default. The default also reads messages of other types and
/// without a type: python-cqrs sends JSON without one.
///
/// ```
/// # use cqrs_core::codec::{ByContentType, JsonDeserializer};
/// # use cqrs_core::consume::Incoming;
/// # use cqrs_core::Notification;
/// # fn of<P: Notification + serde::de::DeserializeOwned>() -> ByContentType<P> {
/// ByContentType::new(JsonDeserializer)
///     .media_type("application/vnd.old+json", JsonDeserializer)
///     .when(|message| message.headers.get("format") == Some("old"), JsonDeserializer)
/// # }
/// ```
pub struct ByContentType<P> {
    choices: Vec<(Rule, Box<dyn Deserializer<P>>)>,
    default: Box<dyn Deserializer<P>>,
}

enum Rule {
    MediaType(Cow<'static, str>),
    When(Box<dyn Fn(&Incoming) -> bool + Send + Sync>),
}

impl<P: Notification> ByContentType<P> {
    /// Reads messages that match no rule with `default`.
    pub fn new(default: impl Deserializer<P>) -> Self {
        Self { choices: Vec::new(), default: Box::new(default) }
    }

    crate::setters! {
        /// Reads messages of `media_type` with `deserializer`. Case and parameters such as `; charset=utf-8`
        /// are ignored ([RFC 9110, 8.3.1](https://www.rfc-editor.org/rfc/rfc9110#section-8.3.1)).
        pub fn media_type(media_type: impl Into<Cow<'static, str>>, deserializer: impl Deserializer<P>) {
            self.choices.push((Rule::MediaType(media_type.into()), Box::new(deserializer)))
        }

        /// Reads messages for which `is` is true with `deserializer`: by a header, say.
        pub fn when(is: impl Fn(&Incoming) -> bool + Send + Sync + 'static, deserializer: impl Deserializer<P>) {
            self.choices.push((Rule::When(Box::new(is)), Box::new(deserializer)))
        }
    }

    fn choose(&self, message: &Incoming) -> &dyn Deserializer<P> {
        let media_type = message.content_type.as_deref().map(content_type::essence);
        let by_type = media_type.and_then(|media_type| {
            self.choices.iter().find(|(rule, _)| match rule {
                Rule::MediaType(known) => {
                    content_type::essence(known).eq_ignore_ascii_case(media_type)
                }
                Rule::When(_) => false,
            })
        });
        let chosen = by_type.or_else(|| {
            self.choices.iter().find(|(rule, _)| match rule {
                Rule::MediaType(_) => false,
                Rule::When(is) => is(message),
            })
        });
        chosen.map_or(&*self.default, |(_, deserializer)| &**deserializer)
    }
}

impl<P: Notification> Deserializer<P> for ByContentType<P> {
    fn deserialize(&self, message: &Incoming) -> Result<NotificationEvent<P>, DeserializeError> {
        self.choose(message).deserialize(message)
    }

    fn event_name<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>> {
        self.choose(message).event_name(message)
    }
}

impl<P> fmt::Debug for ByContentType<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.choices.iter().map(|(rule, _)| rule)).finish()
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MediaType(media_type) => f.write_str(media_type),
            Self::When(_) => f.write_str("when .."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::DeserializeErrorKind;

    #[derive(Debug, serde::Serialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate")]
    struct Told;

    /// Returns its own name, in an error and as the event's name.
    struct Named(&'static str);

    impl Deserializer<Told> for Named {
        fn deserialize(
            &self,
            message: &Incoming,
        ) -> Result<NotificationEvent<Told>, DeserializeError> {
            let kind = DeserializeErrorKind::Shape;
            Err(DeserializeError::new(kind, self.0, message.bytes()))
        }

        fn event_name<'m>(&self, _: &'m Incoming) -> Option<Cow<'m, str>> {
            Some(self.0.into())
        }
    }

    #[test]
    fn the_type_then_the_rules_then_the_default() {
        let either = ByContentType::new(Named("default"))
            .when(|message| message.headers.get("format").is_some(), Named("format"))
            .when(|message| message.headers.len() == 1, Named("one header"))
            .media_type("application/x-protobuf", Named("protobuf"))
            .media_type("Application/JSON; charset=utf-8", Named("json"));
        let chosen = |content_type: Option<&str>, header: Option<&str>| {
            let mut message = Incoming::new("t", "body");
            message.content_type = content_type.map(Into::into);
            if let Some(header) = header {
                message.headers.insert(header, "x").unwrap();
            }
            let error = either.deserialize(&message).unwrap_err();
            assert_eq!(either.event_name(&message).as_deref(), Some(error.message()));
            error.message().to_owned()
        };
        assert_eq!(chosen(Some("application/X-Protobuf"), Some("format")), "protobuf");
        assert_eq!(chosen(Some(" application/json ;charset=ascii"), None), "json");
        assert_eq!(chosen(None, Some("format")), "format");
        assert_eq!(chosen(Some("text/plain"), Some("other")), "one header");
        assert_eq!(chosen(Some("text/plain"), None), "default");
        assert_eq!(chosen(Some(""), None), "default");
        assert_eq!(chosen(None, None), "default");
        assert_eq!(
            format!("{either:?}"),
            "[when .., when .., application/x-protobuf, Application/JSON; charset=utf-8]"
        );
    }
}
