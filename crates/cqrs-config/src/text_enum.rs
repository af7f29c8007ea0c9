//! [`text_enum!`](crate::text_enum): settings with a fixed set of texts, for every client.

/// An enum with one text per variant (and other spellings that are read), for files and environment
/// variables. Case does not matter when reading. The crate that uses it needs `serde`.
#[macro_export]
macro_rules! text_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $text:literal $(| $alias:literal)*,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
        #[serde(try_from = "String")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// The text of the option, as it is read and shown.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::UnknownText;

            fn from_str(text: &str) -> Result<Self, $crate::UnknownText> {
                $(if [$text $(, $alias)*].iter().any(|known| known.eq_ignore_ascii_case(text)) {
                    return Ok(Self::$variant);
                })+
                Err($crate::UnknownText::new(&[$($text),+]))
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::UnknownText;

            fn try_from(text: String) -> Result<Self, $crate::UnknownText> {
                text.parse()
            }
        }

        impl $crate::Variable for $name {
            fn from_variable(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error: $crate::UnknownText| error.to_string())
            }
        }
    };
}

/// A text that names no variant; shows the known ones, not the text.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {}", known.join(", "))]
pub struct UnknownText {
    known: &'static [&'static str],
}

cqrs_core::error_debug!(UnknownText);

impl UnknownText {
    #[doc(hidden)]
    pub fn new(known: &'static [&'static str]) -> Self {
        Self { known }
    }
}
