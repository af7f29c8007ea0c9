//! `#[derive(DomainEvent)]` and `#[derive(Notification)]`.

use std::fmt;

use bytes::Bytes;
use cqrs::codec::{Encoded, SerializeError};
use cqrs::codec::{JsonSerializer, Serializer};
use cqrs::event::default_topic;
use cqrs::message::Headers;
use cqrs::prelude::*;
use serde::Serialize;

fn some(key: &'static str) -> Option<Bytes> {
    Some(Bytes::from(key))
}

#[derive(DomainEvent)]
struct Counted;

#[derive(DomainEvent)]
#[cqrs(name = "Renamed")]
struct Named<T>(T);

#[test]
fn domain_events() {
    assert_eq!(Counted::NAME, "Counted");
    assert_eq!(<Named<u8>>::NAME, "Renamed");
    let domain = [Counted.into_emission(), Named(1).into_emission()];
    assert_eq!(format!("{domain:?}"), r#"[Domain("Counted"), Domain("Renamed")]"#);
}

#[derive(Serialize, Notification)]
struct Bare {}

#[test]
fn a_bare_notification_gets_the_defaults_of_the_trait() {
    assert_eq!(Bare::NAME, "Bare");
    assert_eq!(Bare::topic(), default_topic());
    assert_eq!(Bare {}.key(), None);
    const { assert!(Bare::MANDATORY, "an unroutable event is an error by default") };
    assert_eq!(format!("{:?}", Bare {}.into_emission()), r#"Notification("Bare")"#);
}

#[derive(Serialize)]
struct User {
    r#type: u32,
    tags: (char, Option<&'static str>),
}

macro_rules! keyed {
    ($name:ident, $key:literal) => {
        #[derive(Serialize, Notification)]
        #[cqrs(topic = "user_events", key = $key, mandatory = false)]
        struct $name {
            user: User,
            id: Option<&'static str>,
            r#ref: &'static str,
        }

        impl $name {
            fn new(id: Option<&'static str>) -> Self {
                Self { user: User { r#type: 7, tags: ('a', id) }, id, r#ref: "r" }
            }
        }
    };
}
keyed!(ByOption, "id");
keyed!(ByKeyword, "ref");
keyed!(ByPath, "user.type");
keyed!(ByIndex, "user.tags.0");
keyed!(ByDeepOption, "user.tags.1");

#[derive(Serialize, Notification)]
#[cqrs(key = "1")]
struct Tuple(u8, String);

#[test]
fn keys_are_found_by_name_by_path_and_by_index() {
    assert_eq!(ByOption::new(None).key(), None);
    assert_eq!(ByOption::new(Some("x")).key(), some("x"));
    assert_eq!(ByKeyword::new(None).key(), some("r"));
    assert_eq!(ByPath::new(None).key(), some("7"));
    assert_eq!(ByIndex::new(None).key(), some("a"));
    assert_eq!(ByDeepOption::new(None).key(), None);
    assert_eq!(ByDeepOption::new(Some("x")).key(), some("x"));
    assert_eq!(Tuple(0, "t".to_owned()).key(), some("t"));
    assert_eq!(ByPath::topic(), "user_events");
    const { assert!(!ByPath::MANDATORY) };
}

#[derive(Default)]
struct Csv;

impl Serializer<Measured> for Csv {
    fn serialize(&self, event: &NotificationEvent<Measured>) -> Result<Encoded, SerializeError> {
        let body = Bytes::from(event.payload.value.to_string());
        Ok(Encoded { body, content_type: "text/csv", headers: Headers::new() })
    }
}

#[derive(Notification)]
#[cqrs(serializer = self::Csv)]
struct Measured {
    value: u8,
}

#[test]
fn custom_serializer_needs_no_serde() {
    let serializer = <Measured as Notification>::Serializer::default();
    let event = NotificationEvent::new(Measured { value: 9 });
    assert_eq!(serializer.serialize(&event).unwrap().body, "9");
}

#[derive(Serialize, Notification)]
#[cqrs(topic = "changes", key = "id")]
struct Changed<T, I: fmt::Display> {
    id: Option<I>,
    to: T,
}

#[test]
fn generic_notification_needs_a_serializable_payload() {
    let event = NotificationEvent::new(Changed { id: Some(3), to: vec![1] });
    assert_eq!(event.payload.key(), some("3"));
    let body = JsonSerializer.serialize(&event).unwrap().body;
    assert!(body.starts_with(br#"{"payload":{"id":3,"to":[1]},"#), "{body:?}");
}

mod without_the_umbrella {
    use cqrs_core as core_of_ours;
    use cqrs_core::Notification as _;

    #[derive(cqrs::DomainEvent)]
    #[cqrs(crate = "self::core_of_ours")]
    struct Renamed;

    #[derive(serde::Serialize, cqrs::Notification)]
    #[cqrs(crate = "::cqrs_core", topic = "t", key = "0", name = "E")]
    struct Absolute<T>(u8, T);

    #[test]
    fn the_traits_are_found_where_the_type_says() {
        assert_eq!(<Renamed as cqrs_core::Event>::NAME, "Renamed");
        assert_eq!(Absolute(1, ()).key(), super::some("1"));
    }
}

/// Names of the standard library may be taken: the derives use full paths.
mod hygiene {
    #![allow(dead_code, non_camel_case_types)]

    struct Option;
    struct Send;
    struct String;
    struct str;
    struct bool;

    #[derive(::serde::Serialize, ::cqrs::Notification)]
    #[cqrs(topic = "t", key = "id", mandatory = true)]
    struct Event<T> {
        id: u8,
        more: T,
    }

    #[derive(::cqrs::Query)]
    struct Result<T>(T);
}
