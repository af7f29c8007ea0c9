//! What the derives write, seen through the traits and through a mediator.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cqrs::codec::{Encoded, SerializeError};
use cqrs::prelude::*;
use cqrs::{
    DevnullMessageBroker, Emission, JsonSerializer, RequestKind, Serializer, default_topic,
};
use serde::Serialize;

/// Fails to compile unless `R` has the response and error it is asked for.
fn request<R: Request<Response = T, Error = E>, T, E>() -> (&'static str, RequestKind) {
    (R::NAME, R::KIND)
}

#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

mod requests {
    use super::*;

    #[derive(Command)]
    struct Plain;

    #[derive(Command)]
    #[cqrs(response = Vec<(u64, Self)>, error = self::Refused, name = "Typed.v2")]
    struct Typed {
        _fields: (),
    }

    #[derive(Query)]
    #[cqrs(response = Option<&'static str>)]
    #[cqrs(error = Refused)]
    enum Find {
        _ById(u64),
    }

    #[derive(Query)]
    #[cqrs(crate = "::cqrs")]
    struct r#Match;

    #[test]
    fn names_kinds_and_types() {
        assert_eq!(request::<Plain, (), Infallible>(), ("Plain", RequestKind::Command));
        let typed = request::<Typed, Vec<(u64, Typed)>, Refused>();
        assert_eq!(typed, ("Typed.v2", RequestKind::Command));
        let find = request::<Find, Option<&'static str>, Refused>();
        assert_eq!(find, ("Find", RequestKind::Query));
        assert_eq!(request::<r#Match, (), Infallible>(), ("Match", RequestKind::Query));
    }

    #[test]
    fn the_markers_are_there() {
        fn command<C: Command>() {}
        fn query<Q: Query>() {}
        command::<Plain>();
        query::<Find>();
    }

    #[derive(Command)]
    #[cqrs(response = Vec<T>)]
    struct Import<T: Clone, const N: usize = 4>
    where
        T: fmt::Debug,
    {
        _items: [T; N],
    }

    #[test]
    fn generic_types_get_the_bounds_of_the_trait() {
        fn of<T: Clone + fmt::Debug + Send + 'static>() -> &'static str {
            request::<Import<T>, Vec<T>, Infallible>().0
        }
        assert_eq!(of::<String>(), "Import");
    }
}

mod events {
    use super::*;

    /// The text of the key of `event`.
    fn key<N: Notification>(event: &N) -> Option<String> {
        event.key().map(|key| String::from_utf8(key.to_vec()).unwrap())
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
        assert_eq!(key(&Bare {}), None);
        assert!(Bare::MANDATORY, "an unroutable event is an error by default");
        assert_eq!(format!("{:?}", Bare {}.into_emission()), r#"Notification("Bare")"#);
    }

    #[derive(Serialize)]
    struct User {
        r#type: u32,
        tags: (char, Option<String>),
    }

    macro_rules! keyed {
        ($name:ident, $key:literal) => {
            #[derive(Serialize, Notification)]
            #[cqrs(topic = "user_events", key = $key, mandatory = false)]
            struct $name {
                user: User,
                id: Option<u64>,
                r#ref: &'static str,
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
        let user = |tag: Option<&str>| User { r#type: 7, tags: ('a', tag.map(str::to_owned)) };
        let r#ref = "r";
        assert_eq!(key(&ByOption { user: user(None), id: Some(1), r#ref }).as_deref(), Some("1"));
        assert_eq!(key(&ByOption { user: user(None), id: None, r#ref }), None);
        assert_eq!(key(&ByKeyword { user: user(None), id: None, r#ref }).as_deref(), Some("r"));
        assert_eq!(key(&ByPath { user: user(None), id: None, r#ref }).as_deref(), Some("7"));
        assert_eq!(key(&ByIndex { user: user(None), id: None, r#ref }).as_deref(), Some("a"));
        let deep = |tag| key(&ByDeepOption { user: user(tag), id: None, r#ref });
        assert_eq!(deep(Some("x")).as_deref(), Some("x"));
        assert_eq!(deep(None), None);
        assert_eq!(key(&Tuple(0, "t".to_owned())).as_deref(), Some("t"));
        assert_eq!(ByPath::topic(), "user_events");
        assert!(!ByPath::MANDATORY);
    }

    #[derive(Default)]
    struct Csv;

    impl Serializer<Measured> for Csv {
        fn serialize(
            &self,
            event: &NotificationEvent<Measured>,
        ) -> Result<Encoded, SerializeError> {
            let body = Bytes::from(event.payload.value.to_string());
            Ok(Encoded { body, content_type: "text/csv", headers: cqrs::Headers::new() })
        }
    }

    #[derive(Notification)]
    #[cqrs(serializer = self::Csv)]
    struct Measured {
        value: u8,
    }

    #[test]
    fn a_serializer_of_ones_own_needs_no_serde() {
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
    fn a_generic_notification_is_one_when_its_payload_can_be_written() {
        let event = NotificationEvent::new(Changed { id: Some(3), to: vec![1] });
        assert_eq!(key(&event.payload).as_deref(), Some("3"));
        let body = JsonSerializer.serialize(&event).unwrap().body;
        assert!(body.starts_with(br#"{"payload":{"id":3,"to":[1]},"#), "{body:?}");
    }

    mod without_the_umbrella {
        use cqrs as reexport;

        #[derive(reexport::DomainEvent)]
        #[cqrs(crate = "self::reexport")]
        struct Elsewhere;

        #[test]
        fn the_traits_are_found_where_the_type_says() {
            assert_eq!(<Elsewhere as reexport::Event>::NAME, "Elsewhere");
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
}

#[derive(Command)]
#[cqrs(response = u64, error = Refused)]
struct SignUp {
    name: String,
}

#[derive(DomainEvent)]
struct UserCounted;

#[derive(Serialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]
struct UserCreated {
    user_id: u64,
}

struct SignUpHandler;

impl RequestHandler<SignUp> for SignUpHandler {
    async fn handle(&self, command: SignUp, scope: &mut Scope) -> Result<u64, Refused> {
        if command.name.is_empty() {
            return Err(Refused);
        }
        scope.emit(UserCounted);
        scope.emit(UserCreated { user_id: 1 });
        Ok(1)
    }
}

#[derive(Clone, Default)]
struct Seen(Arc<AtomicUsize>);

impl EventHandler<UserCounted> for Seen {
    async fn handle(&self, _: &UserCounted, _: &mut Scope) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl EventHandler<UserCreated> for Seen {
    async fn handle(&self, _: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test]
async fn derived_types_go_through_a_mediator_on_their_routes() {
    let seen = Seen::default();
    let mediator = Mediator::builder()
        .handle::<SignUp, _>(SignUpHandler)
        .event::<UserCounted, _>(seen.clone())
        .event::<UserCreated, _>(seen.clone())
        .broker(DevnullMessageBroker::new())
        .build()
        .unwrap();
    assert_eq!(mediator.send(SignUp { name: "ada".to_owned() }).await.unwrap(), 1);
    assert_eq!(seen.0.load(Ordering::Relaxed), 1, "the domain event, and not the notification");
    let refused = mediator.send(SignUp { name: String::new() }).await.unwrap_err();
    assert!(matches!(refused, SendError::Handler(Refused)));
}

#[tokio::test]
async fn a_consumed_notification_reaches_its_handlers() {
    let seen = Seen::default();
    let events = EventMediator::builder().event::<UserCreated, _>(seen.clone()).build().unwrap();
    events.send(UserCreated { user_id: 1 }).await.unwrap();
    assert_eq!(seen.0.load(Ordering::Relaxed), 1);
    let emission: Emission = UserCreated { user_id: 1 }.into_emission();
    assert_eq!(emission.name(), "UserCreated");
}
