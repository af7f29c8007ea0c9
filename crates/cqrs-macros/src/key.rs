//! The key of a notification, from the attribute to the expression.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::{Data, DeriveInput, Error, Fields, Index, LitStr, Member, Path, Result};

/// The field that `key = "a.b"` names, as a path from `self`.
pub(crate) struct KeyField {
    span: Span,
    members: Vec<Member>,
}

/// Resolves the first field of the path; the compiler checks the others.
pub(crate) fn field(key: &LitStr, input: &DeriveInput) -> Result<KeyField> {
    let span = key.span();
    let fields = match &input.data {
        Data::Struct(data) => &data.fields,
        Data::Enum(_) | Data::Union(_) => {
            let hint = "`key` names a field of a struct: implement `Notification` by hand to find \
                        the key otherwise";
            return Err(Error::new(span, hint));
        }
    };
    let text = key.value();
    // Errors point at the literal, but names resolve as in the rest of the impl: inside a `macro_rules!`
    // the literal's span cannot resolve `self`.
    let resolved = Span::call_site().located_at(span);
    let members: Option<Vec<_>> =
        text.split('.').map(|segment| member(segment, resolved)).collect();
    let Some(members) = members else {
        let hint =
            format!("`{text}` is no field: write `key = \"user_id\"`, or `key = \"user.id\"`");
        return Err(Error::new(span, hint));
    };
    let is_known =
        members.first().is_some_and(|first| fields.members().any(|known| known == *first));
    match is_known {
        true => Ok(KeyField { span: resolved, members }),
        false => Err(Error::new(span, no_such_field(&text, &input.ident, fields))),
    }
}

/// `Notification::key`.
pub(crate) fn method(krate: &Path, field: &KeyField) -> TokenStream {
    let members = &field.members;
    let key = quote_spanned! {field.span=> #krate::__private::message_key(&self #(.#members)*) };
    quote! {
        fn key(&self) -> ::core::option::Option<#krate::__private::Bytes> {
            #key
        }
    }
}

/// A field's name, raw if it is a keyword, or a tuple's index.
fn member(segment: &str, span: Span) -> Option<Member> {
    if let Ok(index) = segment.parse() {
        return Some(Member::Unnamed(Index { index, span }));
    }
    let plain = syn::parse_str::<Ident>(segment);
    let mut ident = plain.or_else(|_| syn::parse_str(&format!("r#{segment}"))).ok()?;
    ident.set_span(span);
    Some(Member::Named(ident))
}

fn no_such_field(key: &str, ident: &Ident, fields: &Fields) -> String {
    let first = key.split('.').next().unwrap_or(key);
    let known: Vec<_> = fields
        .members()
        .map(|member| match member {
            Member::Named(name) => format!("`{}`", name.unraw()),
            Member::Unnamed(index) => format!("`{}`", index.index),
        })
        .collect();
    let known = match known.is_empty() {
        true => "it has none".to_owned(),
        false => format!("its fields are {}", known.join(", ")),
    };
    format!("`{}` has no field `{first}`: {known}", ident.unraw())
}
