//! The conversion of a payload field to a message key, used by the Notification derive.

use std::fmt;

use bytes::Bytes;

/// A field that can be a notification's key: it implements `Display`, or is an `Option` of a type that
/// does.
///
/// `Form` keeps the two impls apart; it is inferred, since no type fits both.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a message key",
    label = "the key of this notification",
    note = "the field that `key` names implements `Display`, or is an `Option` of a type that does"
)]
pub trait MessageKey<Form> {
    /// The key's bytes; `None` promises no order.
    fn message_key(&self) -> Option<Bytes>;
}

/// The form of a [`MessageKey`] that is always present.
#[derive(Debug)]
pub enum Always {}

/// The form of a [`MessageKey`] that may be missing.
#[derive(Debug)]
pub enum Optional {}

impl<T: fmt::Display + ?Sized> MessageKey<Always> for T {
    fn message_key(&self) -> Option<Bytes> {
        Some(Bytes::from(self.to_string()))
    }
}

impl<T: fmt::Display> MessageKey<Optional> for Option<T> {
    fn message_key(&self) -> Option<Bytes> {
        self.as_ref().and_then(MessageKey::<Always>::message_key)
    }
}

/// The key that `field` holds. `#[cqrs(key = "..")]` expands to a call of it.
pub fn message_key<T: MessageKey<Form> + ?Sized, Form>(field: &T) -> Option<Bytes> {
    field.message_key()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_inferred() {
        assert_eq!(message_key("a").as_deref(), Some(&b"a"[..]));
        assert_eq!(message_key(&7_u64).as_deref(), Some(&b"7"[..]));
        assert_eq!(message_key(&Some(String::from("b"))).as_deref(), Some(&b"b"[..]));
        assert_eq!(message_key(&None::<uuid::Uuid>), None);
    }

    #[test]
    fn a_generic_field_works_in_both_forms() {
        fn both<T: fmt::Display>(field: T) -> [Option<Bytes>; 2] {
            [message_key(&field), message_key(&Some(field))]
        }
        assert_eq!(both(1), [Some(Bytes::from_static(b"1")), Some(Bytes::from_static(b"1"))]);
    }
}
