//! The derives of commands and queries.

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;
use syn::{DeriveInput, Result, parse_quote};

use crate::attributes::Attributes;
use crate::derive::Derive;
use crate::errors::Errors;
use crate::event::name_of;
use crate::generics;

/// Expands `Command` or `Query`: they differ in the marker trait and in `KIND`.
pub(crate) fn expand(derive: Derive, input: DeriveInput) -> Result<TokenStream> {
    let mut errors = Errors::default();
    let attributes = Attributes::read(derive, &input, &mut errors);
    let bounds = [parse_quote!(::core::marker::Send), parse_quote!('static)];
    let generics = generics::with_bounds(&input.generics, &bounds, &mut errors);
    errors.finish()?;

    let krate = attributes.crate_path();
    let name = name_of(&attributes, &input.ident);
    let kind = Ident::new(derive.name(), Span::call_site());
    let response = attributes.response.unwrap_or_else(|| parse_quote!(()));
    let error = attributes.error.unwrap_or_else(|| parse_quote!(::core::convert::Infallible));
    let ident = &input.ident;
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics #krate::Request for #ident #type_generics #where_clause {
            type Response = #response;
            type Error = #error;
            const NAME: &'static ::core::primitive::str = #name;
            const KIND: #krate::request::RequestKind = #krate::request::RequestKind::#kind;
        }

        #[automatically_derived]
        impl #impl_generics #krate::#kind for #ident #type_generics #where_clause {}
    })
}
