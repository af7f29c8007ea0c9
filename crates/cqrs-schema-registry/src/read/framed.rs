//! [`Framed`]: a deserializer of framed messages that asks no registry.

use std::borrow::Cow;

use bytes::Bytes;
use cqrs_core::codec::{DeserializeError, DeserializeErrorKind, Deserializer};
use cqrs_core::consume::Incoming;
use cqrs_core::{Notification, NotificationEvent};

use super::unframe::{UnframeError, is_void};
use super::{OnUnframed, Unframe};
use crate::{MessagePath, SchemaType};

/// Reads framed messages: removes the frame and lets another deserializer read the rest. It asks no
/// registry, so any schema id is accepted.
///
/// ```
/// use cqrs_core::codec::JsonDeserializer;
/// use cqrs_core::Subscription;
/// use cqrs_schema_registry::{Framed, OnUnframed};
/// # use cqrs_core::Notification;
/// # fn f<UserCreated: Notification + serde::de::DeserializeOwned>() {
/// let users = Subscription::to("user_events")
///     .group("mailer")
///     .decode::<UserCreated>(Framed::json(JsonDeserializer).on_unframed(OnUnframed::Pass));
/// # }
/// ```
///
/// A message without frame and body is
/// [`Empty`](cqrs_core::codec::DeserializeErrorKind::Empty) where it is to be JSON; in Protobuf no bytes
/// are a message of defaults, of which only the frame is missing. A frame that is broken or missing is a
/// [`Syntax`](cqrs_core::codec::DeserializeErrorKind::Syntax) error, another message path than the
/// expected one a [`Shape`](cqrs_core::codec::DeserializeErrorKind::Shape) error (its name is still
/// read, so that an event of another name counts as unknown). The errors of the inner deserializer are
/// returned with the received bytes, frame included.
#[derive(Debug, Clone)]
pub struct Framed<D> {
    inner: D,
    unframe: Unframe,
}

impl<D> Framed<D> {
    /// Frames of JSON Schema around what `inner` reads.
    pub fn json(inner: D) -> Self {
        Self { inner, unframe: Unframe::new(SchemaType::Json) }
    }

    /// Frames of Protobuf around what `inner` reads. Any message path is taken, unless
    /// [`path`](Self::path) says which.
    pub fn protobuf(inner: D) -> Self {
        Self { inner, unframe: Unframe::new(SchemaType::Protobuf) }
    }

    cqrs_core::setters! {
        /// Takes frames of this message path only. JSON's frames have none.
        pub fn path(path: MessagePath) { self.unframe.path = Some(path) }

        /// The policy for messages without a frame; an error by default.
        pub fn on_unframed(policy: OnUnframed) { self.unframe.on_unframed = policy }
    }
}

fn with_body(message: &Incoming, body: Bytes) -> Incoming {
    let mut unframed = message.clone();
    unframed.body = Some(body);
    unframed
}

impl<P: Notification, D: Deserializer<P>> Deserializer<P> for Framed<D> {
    fn deserialize(&self, message: &Incoming) -> Result<NotificationEvent<P>, DeserializeError> {
        let is_json = self.unframe.schema_type == SchemaType::Json;
        let (_, body) = self.unframe.split(message).map_err(|error| {
            let kind = match &error {
                UnframeError::Frame(_) if is_json && is_void(message) => {
                    DeserializeErrorKind::Empty
                }
                UnframeError::Frame(_) => DeserializeErrorKind::Syntax,
                UnframeError::Path { .. } => DeserializeErrorKind::Shape,
            };
            DeserializeError::new(kind, error.to_string(), message.bytes())
        })?;
        self.inner
            .deserialize(&with_body(message, body))
            .map_err(|error| DeserializeError::new(error.kind(), error.message(), message.bytes()))
    }

    fn event_name<'m>(&self, message: &'m Incoming) -> Option<Cow<'m, str>> {
        // An event of another message path has a name as well, which may be unknown here.
        let (_, body) = self.unframe.split_any(message).ok()?;
        let unframed = with_body(message, body);
        let name = self.inner.event_name(&unframed)?;
        Some(Cow::Owned(name.into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use cqrs_core::codec::JsonDeserializer;
    use cqrs_macros::Notification;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::Frame;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
    #[cqrs(name = "UserCreated", topic = "user_events", crate = "cqrs_core")]
    struct UserCreated {
        user_id: String,
    }

    const BODY: &str = r#"{"payload":{"user_id":"4111"},"event_name":"UserCreated"}"#;

    fn framed(frame: &[u8], body: &str) -> Incoming {
        Incoming::new("user_events", [frame, body.as_bytes()].concat())
    }

    fn read(by: &Framed<JsonDeserializer>, message: &Incoming) -> Result<String, DeserializeError> {
        Deserializer::<UserCreated>::deserialize(by, message).map(|event| event.payload.user_id)
    }

    fn name(by: &Framed<JsonDeserializer>, message: &Incoming) -> Option<String> {
        Deserializer::<UserCreated>::event_name(by, message).map(Cow::into_owned)
    }

    #[test]
    fn the_frame_is_taken_off_for_the_event_and_its_name() {
        let json = Framed::json(JsonDeserializer);
        let message = framed(&[0, 0, 0, 0, 7], BODY);
        assert_eq!(read(&json, &message).unwrap(), "4111");
        assert_eq!(name(&json, &message).as_deref(), Some("UserCreated"));
    }

    #[test]
    fn a_missing_frame_is_an_error_unless_it_may_be() {
        let json = Framed::json(JsonDeserializer);
        let bare = framed(&[], BODY);
        let error = read(&json, &bare).unwrap_err();
        assert_eq!(error.kind(), DeserializeErrorKind::Syntax);
        assert_eq!(error.bytes(), BODY);
        assert!(!format!("{error} {error:?}").contains("4111"));
        assert_eq!(name(&json, &bare), None);

        let both = json.on_unframed(OnUnframed::Pass);
        assert_eq!(read(&both, &bare).unwrap(), "4111");
        assert_eq!(read(&both, &framed(&[0, 0, 0, 0, 7], BODY)).unwrap(), "4111");
        let cut = framed(&[0, 0, 0], "");
        assert_eq!(read(&both, &cut).unwrap_err().kind(), DeserializeErrorKind::Syntax);
    }

    #[test]
    fn another_message_of_the_schema_is_an_error() {
        let second = MessagePath::new([1]).unwrap();
        let only = Framed::protobuf(JsonDeserializer).path(second);
        assert_eq!(read(&only, &framed(&[0, 0, 0, 0, 7, 2, 2], BODY)).unwrap(), "4111");
        let error = read(&only, &framed(&[0, 0, 0, 0, 7, 0], BODY)).unwrap_err();
        assert_eq!(error.kind(), DeserializeErrorKind::Shape);
        assert_eq!(error.message(), "the schema's message [0], expected [1]");
        let message = framed(&[0, 0, 0, 0, 7, 0], &BODY.replace("UserCreated", "UserMoved"));
        assert_eq!(name(&only, &message).as_deref(), Some("UserMoved"), "for `on_unknown_event`");
        let any = Framed::protobuf(JsonDeserializer);
        assert_eq!(read(&any, &framed(&[0, 0, 0, 0, 7, 0], BODY)).unwrap(), "4111");
    }

    #[test]
    fn inner_error_keeps_the_framed_bytes() {
        let message = framed(&[0, 0, 0, 0, 7], "garbage");
        let error = read(&Framed::json(JsonDeserializer), &message).unwrap_err();
        assert_eq!(error.kind(), DeserializeErrorKind::Syntax);
        assert_eq!(*error.bytes(), message.bytes());
        let empty = read(&Framed::json(JsonDeserializer), &framed(&[], "")).unwrap_err();
        assert_eq!(empty.kind(), DeserializeErrorKind::Empty);
    }

    #[test]
    fn empty_bytes_may_be_a_message() {
        let void = framed(&[], "");
        let error = read(&Framed::protobuf(JsonDeserializer), &void).unwrap_err();
        assert_eq!(error.kind(), DeserializeErrorKind::Syntax, "a message of defaults, unframed");
        let any = Framed::protobuf(JsonDeserializer).on_unframed(OnUnframed::Pass);
        let error = read(&any, &void).unwrap_err();
        assert_eq!(error.kind(), DeserializeErrorKind::Empty, "the inner deserializer's word");
    }

    #[test]
    fn a_header_goes_before_the_body() {
        let mut message = framed(&[], BODY);
        let guid = uuid::Uuid::from_u128(u128::MAX);
        message.headers.insert_bytes(Frame::HEADER, Frame::new(guid).to_bytes()).unwrap();
        assert_eq!(read(&Framed::json(JsonDeserializer), &message).unwrap(), "4111");
        message.headers.insert_bytes(Frame::HEADER, vec![1, 2]).unwrap();
        let any = Framed::json(JsonDeserializer).on_unframed(OnUnframed::Pass);
        assert_eq!(read(&any, &message).unwrap_err().kind(), DeserializeErrorKind::Syntax);
        message.headers.insert_bytes(Frame::HEADER, "x").unwrap();
        assert_eq!(read(&any, &message).unwrap_err().kind(), DeserializeErrorKind::Syntax);
        message.body = Some(bytes::Bytes::new());
        message.headers.insert_bytes(Frame::HEADER, "").unwrap();
        assert_eq!(read(&any, &message).unwrap_err().kind(), DeserializeErrorKind::Syntax);
    }
}
