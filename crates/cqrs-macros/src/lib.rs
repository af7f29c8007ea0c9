//! Derives of the `cqrs` framework. Use them through the `cqrs` crate, which re-exports them beside
//! the traits they implement.
//!
//! Those of requests and events read one helper attribute on the type, `#[cqrs(..)]`:
//!
//! | key | derives | value | without it |
//! |---|---|---|---|
//! | `name` | all | `"UserCreated"` | the type's name |
//! | `response` | `Command`, `Query` | a type | `()` |
//! | `error` | `Command`, `Query` | a type | `std::convert::Infallible` |
//! | `topic` | `Notification` | `"user_events"` | `cqrs::event::default_topic()` |
//! | `key` | `Notification` | a field, `"user_id"`, or a path of fields, `"user.id"` | no key |
//! | `serializer` | `Notification` | a type | `cqrs::codec::JsonSerializer` |
//! | `mandatory` | `Notification` | `true` or `false` | `true` |
//! | `crate` | all | the path of `cqrs` or `cqrs-core`, `"::cqrs_core"` | `"::cqrs"` |
//!
//! # Generic types
//! Type parameters get the bounds that the trait requires of the whole type: `Send + 'static` for requests,
//! `Send + Sync + 'static` for events. Other bounds, such as `Display` for a generic key, must be on the
//! type. All instances of a generic type share one name and topic. A type with a lifetime is refused:
//! requests and events outlive the call that takes them.

mod attributes;
mod derive;
mod errors;
mod event;
mod generics;
mod handler_error;
mod key;
mod request;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

use derive::Derive;

/// Implements `Request` and `Command`.
///
/// `#[cqrs(response = UserId, error = SignUpError, name = "CreateUser", crate = "::cqrs_core")]`, all
/// optional: the response is `()`, the error `std::convert::Infallible`, the name the type's.
#[proc_macro_derive(Command, attributes(cqrs))]
pub fn derive_command(input: TokenStream) -> TokenStream {
    expand(Derive::Command, parse_macro_input!(input as DeriveInput))
}

/// Implements `Request` and `Query`.
///
/// `#[cqrs(response = Option<User>, error = StoreError, name = "FindUser", crate = "::cqrs_core")]`,
/// all optional: the response is `()`, the error `std::convert::Infallible`, the name the type's.
#[proc_macro_derive(Query, attributes(cqrs))]
pub fn derive_query(input: TokenStream) -> TokenStream {
    expand(Derive::Query, parse_macro_input!(input as DeriveInput))
}

/// Implements `Event`, on the route to the handlers of this process, and `DomainEvent`.
///
/// `#[cqrs(name = "UserCounted", crate = "::cqrs_core")]`, both optional: the name is the type's.
///
/// An event has one route: derive this or `Notification`, not both.
#[proc_macro_derive(DomainEvent, attributes(cqrs))]
pub fn derive_domain_event(input: TokenStream) -> TokenStream {
    expand(Derive::DomainEvent, parse_macro_input!(input as DeriveInput))
}

/// Implements `Event`, on the route to the broker, and `Notification`.
///
/// `#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]` and `serializer = Type`,
/// `mandatory = false`, `crate = "::cqrs_core"`, all optional.
///
/// * `name`: the type's name.
/// * `topic`: `default_topic()`, python-cqrs's default.
/// * `key`: a field that implements `Display`, or an `Option` of one: `None` is no key. A path,
///   `"user.id"`, reaches into the field's own fields; `"0"` is the first field of a tuple struct.
/// * `serializer`: `JsonSerializer`, for which the type implements `serde::Serialize`.
/// * `mandatory`: `true`, so that an event that no queue receives is an error if the broker can detect it.
///
/// An event has one route: derive this or `DomainEvent`, not both.
#[proc_macro_derive(Notification, attributes(cqrs))]
pub fn derive_notification(input: TokenStream) -> TokenStream {
    expand(Derive::Notification, parse_macro_input!(input as DeriveInput))
}

/// Implements `From<Self> for HandlerError`, so that `?` in an event handler knows whether a retry may help.
///
/// The class stands on the type or on a variant, which has precedence; without one an error is retryable.
///
/// * `#[cqrs(permanent)]`: retrying cannot fix it.
/// * `#[cqrs(retryable)]`: it may pass. As with any error, one that says that work was committed is permanent
///   nevertheless.
/// * `#[cqrs(transparent)]`: the class, and the error itself, is that of the one field.
/// * `#[cqrs(crate = "::cqrs_core")]`, on the type: the path of the crate.
///
/// The type implements `std::error::Error`.
///
/// # The price: the type is no longer `Unpin`
/// `HandlerError` converts every `Unpin` error by one blanket impl. A second impl for a type is allowed only if the
/// compiler can tell the two apart, and stable Rust offers nothing for that but an auto trait (no specialisation, no
/// negative bounds). Errors are hardly ever pinned, so the price is small:
///
/// * Code that requires `E: Unpin` of the error itself refuses it. `Box<E>` is `Unpin`, and so are the common futures,
///   channels and task handles that return it.
/// * An error type that contains it needs the derive, too; `#[cqrs(transparent)]` keeps the class. The compiler says so
///   at the `?`. For a type that is not yours write `.map_err(HandlerError::retryable)?`, or `.permanent()?`.
#[proc_macro_derive(IntoHandlerError, attributes(cqrs))]
pub fn derive_into_handler_error(input: TokenStream) -> TokenStream {
    let expanded = handler_error::expand(&parse_macro_input!(input as DeriveInput));
    expanded.unwrap_or_else(syn::Error::into_compile_error).into()
}

fn expand(derive: Derive, input: DeriveInput) -> TokenStream {
    let expanded = match derive {
        Derive::Command | Derive::Query => request::expand(derive, input),
        Derive::DomainEvent | Derive::Notification => event::expand(derive, input),
    };
    expanded.unwrap_or_else(syn::Error::into_compile_error).into()
}
