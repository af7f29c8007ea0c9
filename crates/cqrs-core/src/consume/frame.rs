//! The event of a message whose body is the payload alone: id, name, time and topic are those of its frame.

use std::borrow::Cow;

use uuid::Uuid;

use super::incoming::Incoming;
use crate::event::{Notification, NotificationEvent, Timestamp};
use crate::message::header;

impl Incoming {
    /// An event with `payload` and the data of the frame: the id (the header `message_id`, else the broker's
    /// own, if it is a UUID), the name, the time of publishing and the topic. What is missing or cannot be read
    /// gets the default of a new event.
    ///
    /// For a [`Deserializer`](crate::codec::Deserializer) of a format whose body is the payload alone.
    pub fn to_event<P: Notification>(&self, payload: P) -> NotificationEvent<P> {
        // python-cqrs puts the event's id into the header, and another one into RabbitMQ's property.
        let parsed = |id: Option<&str>| id?.parse().ok();
        let id =
            parsed(self.headers.get(header::MESSAGE_ID)).or_else(|| parsed(self.id.as_deref()));
        let id = id.unwrap_or_else(Uuid::now_v7);
        let time = self.timestamp.map_or_else(Timestamp::now, Timestamp::from);
        let name = self.event_name().filter(|name| *name != P::NAME);
        let name = name.map_or(Cow::Borrowed(P::NAME), |name| Cow::Owned(name.to_owned()));
        let mut topic = P::topic();
        if topic != *self.topic {
            // Not by `to_string`, which formats an `Arc<str>`.
            topic = Cow::Owned(str::to_owned(&self.topic));
        }
        NotificationEvent::from_parts(payload, id, time, name, topic)
    }

    /// The name of the event in the frame, if there is one: the header `event_name`, else the broker's own.
    #[inline]
    pub fn event_name(&self) -> Option<&str> {
        match self.headers.get(header::EVENT_NAME) {
            Some(name) if !name.is_empty() => Some(name),
            _ => self.name.as_deref().filter(|name| !name.is_empty()),
        }
    }
}
