//! The repeated parts of types, as macros: setters of builders and `Debug` of a few fields, `From` of many
//! types; used by all crates.

/// Methods of a builder that change fields and return the builder.
#[doc(hidden)]
#[macro_export]
macro_rules! setters {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $type:ty),+) {
            $(self.$($field:ident).+ $(($($call:tt)*))? $(= $value:expr)?);+
        }
    )+) => {$(
        $(#[$meta])*
        #[must_use = "it returns the changed value"]
        $vis fn $name(mut self, $($arg: $type),+) -> Self {
            $(self.$($field).+ $(($($call)*))? $(= $value)?;)+
            self
        }
    )+};
}

/// `Debug` of a type that shows some fields, and others computed from `$it`: payloads and secrets are left out.
#[doc(hidden)]
#[macro_export]
macro_rules! debug_fields {
    (
        $name:ident $(<$($param:ident),+>)? { $($field:ident),* }
        $(, |$it:ident| $($shown:ident: $value:expr),+)?
    ) => {
        impl $(<$($param),+>)? ::std::fmt::Debug for $name $(<$($param),+>)? {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                let mut shown = f.debug_struct(stringify!($name));
                $(shown.field(stringify!($field), &self.$field);)*
                $(
                    let $it = self;
                    $(shown.field(stringify!($shown), &$value);)+
                )?
                shown.finish_non_exhaustive()
            }
        }
    };
}

/// `From` of several types, one a line.
#[doc(hidden)]
#[macro_export]
macro_rules! from_values {
    ($target:ident: $($type:ty = |$value:ident| $made:expr),+ $(,)?) => {$(
        impl From<$type> for $target {
            fn from($value: $type) -> Self {
                $made
            }
        }
    )+};
}
