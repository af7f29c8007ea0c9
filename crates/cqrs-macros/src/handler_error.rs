//! The derive of `IntoHandlerError`: the class of an error, permanent or retryable, at its type.

use proc_macro2::TokenStream;
use quote::quote;
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Fields, LitStr, Path, Result, parse_quote};

use crate::errors::Errors;

/// The class of an error, or of one variant.
#[derive(Clone, Copy)]
enum Class {
    Permanent,
    Retryable,
    /// That of its one field.
    Transparent,
}

/// The `#[cqrs(..)]` attributes of the type or of a variant.
#[derive(Default)]
struct Attributes {
    class: Option<Class>,
    krate: Option<Path>,
}

/// Expands `IntoHandlerError`: `From<Self> for HandlerError`.
///
/// `HandlerError` converts every other error by a blanket impl, which requires `Unpin`. A bound that nothing
/// meets makes this type `!Unpin`, so that the two impls do not overlap (E0119): stable Rust has no
/// specialisation, and an auto trait is the only property by which coherence can tell errors apart.
pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let mut errors = Errors::default();
    let ident = &input.ident;
    let Attributes { class, krate } =
        errors.take(Attributes::read(&input.attrs)).unwrap_or_default();
    let default = class.unwrap_or(Class::Retryable);
    let krate = krate.unwrap_or_else(|| parse_quote!(::cqrs));
    let mut arms = Vec::new();
    match &input.data {
        Data::Struct(data) => {
            arms.extend(errors.take(arm(&krate, &quote!(#ident), &data.fields, default)));
        }
        Data::Enum(data) => {
            for variant in &data.variants {
                let own = errors.take(Attributes::read(&variant.attrs)).unwrap_or_default();
                let name = &variant.ident;
                let class = own.class.unwrap_or(default);
                let pattern = quote!(#ident::#name);
                arms.extend(errors.take(arm(&krate, &pattern, &variant.fields, class)));
            }
        }
        Data::Union(_) => {
            errors.push(Error::new_spanned(ident, "a union is no error: write an enum"));
        }
    }
    errors.finish()?;

    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    let mut unmet = input.generics.clone();
    let bound = parse_quote!(for<'unmet> #ident #type_generics: WrapperDerivesIntoHandlerError);
    unmet.make_where_clause().predicates.push(bound);
    let (_, _, unmet) = unmet.split_for_impl();
    Ok(quote! {
        const _: () = {
            // Nothing implements it. Its name stands in the compiler's error about a `?` on a wrapper.
            trait WrapperDerivesIntoHandlerError {}

            #[automatically_derived]
            impl #impl_generics ::core::marker::Unpin for #ident #type_generics #unmet {}

            #[automatically_derived]
            impl #impl_generics ::core::convert::From<#ident #type_generics> for #krate::HandlerError
            #where_clause
            {
                fn from(error: #ident #type_generics) -> Self {
                    match error { #(#arms)* }
                }
            }
        };
    })
}

/// The arm that converts an error which matches `pattern { .. }`.
fn arm(krate: &Path, pattern: &TokenStream, fields: &Fields, class: Class) -> Result<TokenStream> {
    let is_permanent = match class {
        Class::Permanent => true,
        Class::Retryable => false,
        Class::Transparent => {
            let mut members = fields.members();
            let (Some(inner), None) = (members.next(), members.next()) else {
                let hint = "`transparent` takes the class of the one field: use `permanent` or `retryable`";
                return Err(Error::new(pattern.span(), hint));
            };
            return Ok(quote! {
                #pattern { #inner: inner } => ::core::convert::From::from(inner),
            });
        }
    };
    Ok(quote! {
        #pattern { .. } => #krate::__private::classed(error, #is_permanent),
    })
}

impl Attributes {
    fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut this = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("cqrs")) {
            attribute.parse_nested_meta(|meta| this.read_one(&meta))?;
        }
        Ok(this)
    }

    fn read_one(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let class = match meta.path.get_ident().map(ToString::to_string).as_deref() {
            Some("permanent") => Class::Permanent,
            Some("retryable") => Class::Retryable,
            Some("transparent") => Class::Transparent,
            Some("crate") => {
                let path: LitStr = meta.value()?.parse()?;
                self.krate = Some(path.parse_with(Path::parse_mod_style)?);
                return Ok(());
            }
            _ => {
                let known = "`#[derive(IntoHandlerError)]` accepts `permanent`, `retryable`, \
                             `transparent` and `crate`";
                return Err(Error::new_spanned(&meta.path, known));
            }
        };
        match self.class.replace(class) {
            None => Ok(()),
            Some(_) => Err(Error::new_spanned(&meta.path, "an error has one class: keep one")),
        }
    }
}
