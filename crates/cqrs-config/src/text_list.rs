//! [`TextList`]: addresses as one text with commas or as a list, for the settings of all clients.

use std::fmt;

use serde::{Deserialize, Deserializer};

use crate::{Secret, not_text};

/// Several texts, such as the addresses of servers: made from one text with commas, or from a list.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TextList(Vec<String>);

/// Reads a list of a file, for `#[serde(deserialize_with)]`: a list of texts, or one text with commas.
/// A value of another type is marked as [`secret_text`](crate::secret_text) does it, since a password may stand in an
/// address.
///
/// # Errors
/// Those of the format itself.
pub fn deserialize_text_list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(match ListOrText::deserialize(from)? {
        ListOrText::List(texts) => texts.iter().map(|text| text.expose().to_owned()).collect(),
        ListOrText::Text(text) if not_text(text.expose()).is_some() => {
            vec![text.expose().to_owned()]
        }
        ListOrText::Text(text) => TextList::split(text.expose()).0,
    })
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ListOrText {
    List(Vec<Secret>),
    Text(Secret),
}

impl TextList {
    fn split(text: &str) -> Self {
        Self(text.split(',').map(|part| part.trim().to_owned()).collect())
    }
}

impl From<TextList> for Vec<String> {
    fn from(list: TextList) -> Self {
        list.0
    }
}

cqrs_core::from_values! { TextList:
    &str = |text| Self::split(text),
    &String = |text| Self::split(text),
    String = |text| Self::split(&text),
}

impl<T: Into<String>> From<Vec<T>> for TextList {
    fn from(texts: Vec<T>) -> Self {
        Self(texts.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<String>, const N: usize> From<[T; N]> for TextList {
    fn from(texts: [T; N]) -> Self {
        Self(texts.map(Into::into).into())
    }
}

impl<T: Clone + Into<String>> From<&[T]> for TextList {
    fn from(texts: &[T]) -> Self {
        texts.to_vec().into()
    }
}

impl<T: Clone + Into<String>> From<&Vec<T>> for TextList {
    fn from(texts: &Vec<T>) -> Self {
        texts.clone().into()
    }
}

impl fmt::Debug for TextList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
