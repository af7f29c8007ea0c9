//! The payloads that JSON can carry: aliases of serde's traits with compiler errors that say what to write.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A payload that can be written as JSON: an alias of [`serde::Serialize`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be published as JSON: add `#[derive(serde::Serialize)]`, or name its format: \
               `#[cqrs(serializer = ProtobufSerializer)]` for a prost message",
    label = "`Serialize` is missing"
)]
pub trait ToJson: Serialize {}

#[diagnostic::do_not_recommend]
impl<T: Serialize> ToJson for T {}

/// A payload that can be read from JSON: an alias of [`serde::de::DeserializeOwned`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from JSON: add `#[derive(serde::Deserialize)]`, or read its format: \
               `.decode::<{Self}>(ProtobufDeserializer::new())` for a prost message",
    label = "`Deserialize` is missing"
)]
pub trait FromJson: DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: DeserializeOwned> FromJson for T {}
