//! A serializer that writes nothing and finds the first number that JSON cannot represent, for `json`.

use std::fmt;

use serde::ser::{self, Serialize};

/// The error text for the first number in `value` that is NaN or infinite: its path and the remedy.
pub(super) fn find<T: Serialize>(value: &T) -> Option<String> {
    let found = value.serialize(Finder).err()?;
    let number = found.number?;
    let path = match found.path.strip_prefix('.').unwrap_or(&found.path) {
        "" => "the value",
        path => path,
    };
    Some(format!(
        "{path} is {number}, which JSON has not: send an Option, a text, or another format"
    ))
}

/// A number that is not finite, and the path to it from the value that is searched.
#[derive(Debug)]
struct Found {
    path: String,
    /// `None` if a `Serialize` failed that had succeeded before.
    number: Option<f64>,
}

impl Found {
    fn within(mut self, step: fmt::Arguments<'_>) -> Self {
        self.path.insert_str(0, &step.to_string());
        self
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:?}", self.path, self.number)
    }
}

impl std::error::Error for Found {}

impl ser::Error for Found {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self { path: String::new(), number: None }
    }
}

struct Finder;

/// A sequence, map, struct or enum variant that is searched.
#[derive(Default)]
struct Compound {
    next_index: usize,
    /// The key of a map's entry.
    key: String,
    /// The variant of an enum.
    variant: Option<&'static str>,
}

impl Compound {
    /// Searches the field `name`, or the item at the next index.
    fn search<T: ?Sized + Serialize>(
        &mut self,
        name: Option<&str>,
        value: &T,
    ) -> Result<(), Found> {
        let index = self.next_index;
        self.next_index += 1;
        value.serialize(Finder).map_err(|found| {
            let found = match name {
                Some(name) => found.within(format_args!(".{name}")),
                None => found.within(format_args!("[{index}]")),
            };
            match self.variant {
                Some(variant) => found.within(format_args!(".{variant}")),
                None => found,
            }
        })
    }
}

fn check(number: f64) -> Result<(), Found> {
    match number.is_finite() {
        true => Ok(()),
        false => Err(Found { path: String::new(), number: Some(number) }),
    }
}

/// Methods for values without a number in them.
macro_rules! without_number {
    ($($method:ident($($argument:ty),*)),* $(,)?) => {
        $(fn $method(self, $(_: $argument),*) -> Result<(), Found> {
            Ok(())
        })*
    };
}

/// Methods for compounds outside of an enum.
macro_rules! compounds {
    ($($method:ident($($argument:ty),*)),* $(,)?) => {
        $(fn $method(self, $(_: $argument),*) -> Result<Compound, Found> {
            Ok(Compound::default())
        })*
    };
}

/// Methods for variants of an enum.
macro_rules! variants {
    ($($method:ident),*) => {
        $(fn $method(
            self,
            _: &'static str,
            _: u32,
            variant: &'static str,
            _: usize,
        ) -> Result<Compound, Found> {
            Ok(Compound { variant: Some(variant), ..Compound::default() })
        })*
    };
}

impl ser::Serializer for Finder {
    type Ok = ();
    type Error = Found;
    type SerializeSeq = Compound;
    type SerializeTuple = Compound;
    type SerializeTupleStruct = Compound;
    type SerializeTupleVariant = Compound;
    type SerializeMap = Compound;
    type SerializeStruct = Compound;
    type SerializeStructVariant = Compound;

    without_number! {
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_i128(i128),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_u128(u128),
        serialize_char(char),
        serialize_str(&str),
        serialize_bytes(&[u8]),
        serialize_none(),
        serialize_unit(),
        serialize_unit_struct(&'static str),
        serialize_unit_variant(&'static str, u32, &'static str),
    }

    compounds! {
        serialize_seq(Option<usize>),
        serialize_tuple(usize),
        serialize_tuple_struct(&'static str, usize),
        serialize_map(Option<usize>),
        serialize_struct(&'static str, usize),
    }

    variants!(serialize_tuple_variant, serialize_struct_variant);

    fn serialize_f32(self, number: f32) -> Result<(), Found> {
        check(number.into())
    }

    fn serialize_f64(self, number: f64) -> Result<(), Found> {
        check(number)
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Found> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Found> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Found> {
        Compound::default().search(Some(variant), value)
    }

    fn collect_str<T: ?Sized + fmt::Display>(self, _: &T) -> Result<(), Found> {
        Ok(())
    }
}

/// Implements a trait of compounds; `name` is the name of a field.
macro_rules! search_each {
    ($($trait:ident::$method:ident($($name:ident)?)),* $(,)?) => {
        $(impl ser::$trait for Compound {
            type Ok = ();
            type Error = Found;

            fn $method<T: ?Sized + Serialize>(
                &mut self,
                $($name: &'static str,)?
                value: &T,
            ) -> Result<(), Found> {
                self.search([$($name)?].first().copied(), value)
            }

            fn end(self) -> Result<(), Found> {
                Ok(())
            }
        })*
    };
}

search_each! {
    SerializeSeq::serialize_element(),
    SerializeTuple::serialize_element(),
    SerializeTupleStruct::serialize_field(),
    SerializeTupleVariant::serialize_field(),
    SerializeStruct::serialize_field(name),
    SerializeStructVariant::serialize_field(name),
}

impl ser::SerializeMap for Compound {
    type Ok = ();
    type Error = Found;

    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), Found> {
        self.key = text(key);
        Ok(())
    }

    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Found> {
        let key = std::mem::take(&mut self.key);
        self.search(Some(&key), value)
    }

    /// As the two together, but the key becomes text only if it is needed.
    fn serialize_entry<K: ?Sized + Serialize, V: ?Sized + Serialize>(
        &mut self,
        key: &K,
        value: &V,
    ) -> Result<(), Found> {
        value.serialize(Finder).map_err(|found| found.within(format_args!(".{}", text(key))))
    }

    fn end(self) -> Result<(), Found> {
        Ok(())
    }
}

/// A map's key as JSON writes it, without the quotes.
fn text<T: ?Sized + Serialize>(key: &T) -> String {
    serde_json::to_string(key)
        .map_or_else(|_| "?".to_owned(), |text| text.trim_matches('"').to_owned())
}
