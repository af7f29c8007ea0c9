//! The `#[cqrs(..)]` attributes.

use proc_macro2::TokenTree;
use quote::ToTokens;
use syn::meta::ParseNestedMeta;
use syn::parse::{Parse, ParseStream};
use syn::{
    Attribute, Data, DeriveInput, Error, LitBool, LitStr, Path, Result, Token, Type, parse_quote,
};

use crate::derive::Derive;
use crate::errors::Errors;

/// The `#[cqrs(..)]` attributes of a type.
#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) name: Option<LitStr>,
    pub(crate) response: Option<Type>,
    pub(crate) error: Option<Type>,
    pub(crate) topic: Option<LitStr>,
    pub(crate) key: Option<LitStr>,
    pub(crate) serializer: Option<Type>,
    pub(crate) mandatory: Option<LitBool>,
    krate: Option<Path>,
}

impl Attributes {
    /// Reads all attributes; a mistake in one does not hide one in another.
    pub(crate) fn read(derive: Derive, input: &DeriveInput, errors: &mut Errors) -> Self {
        let mut this = Self::default();
        for attribute in input.attrs.iter().filter(is_ours) {
            let walked = attribute.parse_nested_meta(|meta| {
                if let Err(error) = this.read_one(derive, &meta) {
                    errors.push(error);
                    skip_to_comma(meta.input)?;
                }
                Ok(())
            });
            errors.take(walked);
        }
        refuse_elsewhere(&input.data, errors);
        this
    }

    /// The path of the crate with the traits.
    pub(crate) fn crate_path(&self) -> Path {
        self.krate.clone().unwrap_or_else(|| parse_quote!(::cqrs))
    }

    fn read_one(&mut self, derive: Derive, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let key = meta.path.to_token_stream().to_string();
        if !derive.accepts(&key) {
            return Err(Error::new_spanned(&meta.path, derive.unsupported_key(&key)));
        }
        match key.as_str() {
            "name" => set(&mut self.name, meta, |value| non_empty(value, "name", "UserCreated")),
            "topic" => set(&mut self.topic, meta, |value| non_empty(value, "topic", "user_events")),
            "key" => set(&mut self.key, meta, |value| non_empty(value, "key", "user_id")),
            "response" => set(&mut self.response, meta, |value| a_type(value, "response")),
            "error" => set(&mut self.error, meta, |value| a_type(value, "error")),
            "serializer" => set(&mut self.serializer, meta, |value| a_type(value, "serializer")),
            "mandatory" => set(&mut self.mandatory, meta, |value| {
                literal(value, "write `mandatory = true` or `mandatory = false`")
            }),
            _ => set(&mut self.krate, meta, |value| {
                let hint = "write the crate's path in quotes: `crate = \"::cqrs_core\"`";
                literal::<LitStr>(value, hint)?.parse_with(Path::parse_mod_style)
            }),
        }
    }
}

fn is_ours(attribute: &&Attribute) -> bool {
    attribute.path().is_ident("cqrs")
}

fn set<T>(
    slot: &mut Option<T>,
    meta: &ParseNestedMeta<'_>,
    parse: impl FnOnce(ParseStream<'_>) -> Result<T>,
) -> Result<()> {
    let key = meta.path.to_token_stream();
    if slot.is_some() {
        return Err(Error::new_spanned(&key, format!("`{key}` is given twice: keep one")));
    }
    let value = meta
        .value()
        .map_err(|_| Error::new_spanned(&key, format!("`{key}` needs a value: `{key} = ..`")))?;
    *slot = Some(parse(value)?);
    Ok(())
}

fn literal<L: Parse>(value: ParseStream<'_>, hint: &str) -> Result<L> {
    let span = value.span();
    value.parse().map_err(|_| Error::new(span, hint))
}

fn non_empty(value: ParseStream<'_>, key: &str, example: &str) -> Result<LitStr> {
    let text: LitStr = literal(value, &format!("write a text in quotes: `{key} = \"{example}\"`"))?;
    match text.value().trim().is_empty() {
        true => Err(Error::new(text.span(), format!("`{key}` is empty: fill it or leave it out"))),
        false => Ok(text),
    }
}

fn a_type(value: ParseStream<'_>, key: &str) -> Result<Type> {
    if value.peek(syn::Lit) {
        let hint = format!("write a type, without quotes: `{key} = path::To`");
        return Err(value.error(hint));
    }
    value.parse()
}

fn skip_to_comma(input: ParseStream<'_>) -> Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<TokenTree>()?;
    }
    Ok(())
}

/// Refuses attributes on fields and variants: the compiler allows them, but no derive reads them.
fn refuse_elsewhere(data: &Data, errors: &mut Errors) {
    let of_variants = match data {
        Data::Enum(data) => data.variants.iter().flat_map(|variant| &variant.attrs).collect(),
        Data::Struct(_) | Data::Union(_) => Vec::new(),
    };
    let of_fields: Vec<_> = match data {
        Data::Struct(data) => data.fields.iter().collect(),
        Data::Enum(data) => data.variants.iter().flat_map(|variant| &variant.fields).collect(),
        Data::Union(data) => data.fields.named.iter().collect(),
    };
    let of_fields = of_fields.into_iter().flat_map(|field| &field.attrs);
    for attribute in of_variants.into_iter().chain(of_fields).filter(is_ours) {
        let hint = "`#[cqrs(..)]` belongs on the type; a key field is named there: \
                    `#[cqrs(key = \"user_id\")]`";
        errors.push(Error::new_spanned(attribute, hint));
    }
}
