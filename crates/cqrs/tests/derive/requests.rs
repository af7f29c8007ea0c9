//! `#[derive(Command)]` and `#[derive(Query)]`.

use std::convert::Infallible;
use std::fmt;

use cqrs::prelude::*;
use cqrs::request::RequestKind;

use super::Refused;

/// Fails to compile unless `R` has the response and error it is asked for.
fn request<R: Request<Response = T, Error = E>, T, E>() -> (&'static str, RequestKind) {
    (R::NAME, R::KIND)
}

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
