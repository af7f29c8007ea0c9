//! The derives of domain events and notifications.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::ext::IdentExt;
use syn::{DeriveInput, Generics, LitStr, Path, Result, parse_quote};

use crate::attributes::Attributes;
use crate::derive::Derive;
use crate::errors::Errors;
use crate::{generics, key};

/// The type's name in messages, logs and errors.
pub(crate) fn name_of(attributes: &Attributes, ident: &Ident) -> LitStr {
    let own = || LitStr::new(&ident.unraw().to_string(), ident.span());
    attributes.name.clone().unwrap_or_else(own)
}

/// Expands `DomainEvent` or `Notification`: they differ in the route, and a notification has a topic, a key
/// and a serializer.
pub(crate) fn expand(derive: Derive, input: DeriveInput) -> Result<TokenStream> {
    let mut errors = Errors::default();
    let attributes = Attributes::read(derive, &input, &mut errors);
    let bounds = [
        parse_quote!(::core::marker::Send),
        parse_quote!(::core::marker::Sync),
        parse_quote!('static),
    ];
    let mut generics = generics::with_bounds(&input.generics, &bounds, &mut errors);
    let key = attributes.key.as_ref().map(|key| errors.take(key::field(key, &input)));
    errors.finish()?;
    let krate = attributes.crate_path();
    let ident = &input.ident;

    if derive == Derive::DomainEvent {
        let event = event(&krate, &attributes, ident, &generics, ["Domain", "domain"]);
        let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
        return Ok(quote! {
            #event

            #[automatically_derived]
            impl #impl_generics #krate::DomainEvent for #ident #type_generics #where_clause {}
        });
    }

    let is_generic = generics.type_params().next().is_some();
    if is_generic && attributes.serializer.is_none() {
        // A bound on the serializer would need the impl that is generated here, so its own requirement is
        // used.
        let (_, type_generics, _) = input.generics.split_for_impl();
        let predicate = parse_quote!(#ident #type_generics: #krate::__private::Serialize);
        generics.make_where_clause().predicates.push(predicate);
    }
    let event = event(&krate, &attributes, ident, &generics, ["Notification", "notification"]);
    let key = key.flatten().map(|field| key::method(&krate, &field));
    let topic = attributes.topic.map(|topic| {
        quote! {
            fn topic() -> ::std::borrow::Cow<'static, ::core::primitive::str> {
                ::std::borrow::Cow::Borrowed(#topic)
            }
        }
    });
    let mandatory = attributes
        .mandatory
        .map(|mandatory| quote!(const MANDATORY: ::core::primitive::bool = #mandatory;));
    let serializer =
        attributes.serializer.unwrap_or_else(|| parse_quote!(#krate::codec::JsonSerializer));
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    Ok(quote! {
        #event

        #[automatically_derived]
        impl #impl_generics #krate::Notification for #ident #type_generics #where_clause {
            type Serializer = #serializer;
            #mandatory
            #topic
            #key
        }
    })
}

fn event(
    krate: &Path,
    attributes: &Attributes,
    ident: &Ident,
    generics: &Generics,
    [route, constructor]: [&str; 2],
) -> TokenStream {
    let (route, constructor) = (format_ident!("{route}"), format_ident!("{constructor}"));
    let name = name_of(attributes, ident);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::Event for #ident #type_generics #where_clause {
            const NAME: &'static ::core::primitive::str = #name;
            const ROUTE: #krate::event::EventRoute = #krate::event::EventRoute::#route;

            fn into_emission(self) -> #krate::event::Emission {
                #krate::event::Emission::#constructor(self)
            }
        }
    }
}
