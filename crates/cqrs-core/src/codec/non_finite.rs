//! Finds a floating-point number that JSON has not: a serializer that writes nothing and stops at the first.

use std::fmt;

use serde::ser::{self, Serialize};

/// The first number in `value` that is NaN or infinite: where it is and what to do.
pub(super) fn find<T: Serialize>(value: &T) -> Option<String> {
    let found = value.serialize(Finder).err()?;
    let number = found.number?;
    let path = found.path.strip_prefix('.').unwrap_or(&found.path);
    Some(format!(
        "{path} is {number}, which JSON has not: send an Option, a text, or another format"
    ))
}

/// A number that is not finite, and the path to it from where the search is.
#[derive(Debug)]
struct Found {
    path: String,
    /// `None`: a `Serialize` failed that had succeeded before.
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

/// What is inside of something: items, entries or fields.
struct Inside {
    /// Of the item that is next.
    index: usize,
    /// Of a map's entry.
    key: String,
    /// Of an enum.
    variant: Option<&'static str>,
}

impl Inside {
    fn new(variant: Option<&'static str>) -> Self {
        Self { index: 0, key: String::new(), variant }
    }

    fn named<T: ?Sized + Serialize>(&self, name: &str, value: &T) -> Result<(), Found> {
        self.place(value.serialize(Finder).map_err(|found| found.within(format_args!(".{name}"))))
    }

    fn item<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Found> {
        let index = self.index;
        self.index += 1;
        self.place(value.serialize(Finder).map_err(|found| found.within(format_args!("[{index}]"))))
    }

    fn place(&self, result: Result<(), Found>) -> Result<(), Found> {
        result.map_err(|found| match self.variant {
            Some(variant) => found.within(format_args!(".{variant}")),
            None => found,
        })
    }
}

fn check(number: f64) -> Result<(), Found> {
    match number.is_finite() {
        true => Ok(()),
        false => Err(Found { path: String::new(), number: Some(number) }),
    }
}

macro_rules! nothing_in {
    ($($method:ident: $type:ty),* $(,)?) => {
        $(fn $method(self, _: $type) -> Result<(), Found> {
            Ok(())
        })*
    };
}

impl ser::Serializer for Finder {
    type Ok = ();
    type Error = Found;
    type SerializeSeq = Inside;
    type SerializeTuple = Inside;
    type SerializeTupleStruct = Inside;
    type SerializeTupleVariant = Inside;
    type SerializeMap = Inside;
    type SerializeStruct = Inside;
    type SerializeStructVariant = Inside;

    nothing_in! {
        serialize_bool: bool,
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_i128: i128,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
        serialize_u128: u128,
        serialize_char: char,
        serialize_str: &str,
        serialize_bytes: &[u8],
        serialize_unit_struct: &'static str,
    }

    fn serialize_f32(self, number: f32) -> Result<(), Found> {
        check(number.into())
    }

    fn serialize_f64(self, number: f64) -> Result<(), Found> {
        check(number)
    }

    fn serialize_none(self) -> Result<(), Found> {
        Ok(())
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Found> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Found> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &str, _: u32, _: &str) -> Result<(), Found> {
        Ok(())
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
        Inside::new(None).named(variant, value)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Inside, Found> {
        Ok(Inside::new(None))
    }

    fn serialize_tuple(self, _: usize) -> Result<Inside, Found> {
        Ok(Inside::new(None))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Inside, Found> {
        Ok(Inside::new(None))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Inside, Found> {
        Ok(Inside::new(Some(variant)))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Inside, Found> {
        Ok(Inside::new(None))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Inside, Found> {
        Ok(Inside::new(None))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Inside, Found> {
        Ok(Inside::new(Some(variant)))
    }

    fn collect_str<T: ?Sized + fmt::Display>(self, _: &T) -> Result<(), Found> {
        Ok(())
    }
}

macro_rules! items {
    ($($trait:ident::$method:ident),* $(,)?) => {
        $(impl ser::$trait for Inside {
            type Ok = ();
            type Error = Found;

            fn $method<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Found> {
                self.item(value)
            }

            fn end(self) -> Result<(), Found> {
                Ok(())
            }
        })*
    };
}

macro_rules! fields {
    ($($trait:ident),* $(,)?) => {
        $(impl ser::$trait for Inside {
            type Ok = ();
            type Error = Found;

            fn serialize_field<T: ?Sized + Serialize>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Found> {
                self.named(name, value)
            }

            fn end(self) -> Result<(), Found> {
                Ok(())
            }
        })*
    };
}

items! {
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
}

fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Inside {
    type Ok = ();
    type Error = Found;

    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), Found> {
        self.key = text(key);
        Ok(())
    }

    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Found> {
        self.named(&self.key, value)
    }

    /// As the two together, but the key becomes a text only where it is needed.
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

/// A map's key as JSON has it, without the quotes.
fn text<T: ?Sized + Serialize>(key: &T) -> String {
    serde_json::to_string(key)
        .map_or_else(|_| "?".to_owned(), |text| text.trim_matches('"').to_owned())
}
