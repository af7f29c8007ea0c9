//! The bounds that a derive adds to the type parameters.

use syn::{Error, Generics, TypeParamBound, parse_quote};

use crate::errors::Errors;

/// The type's generics with `bounds` on every type parameter.
pub(crate) fn with_bounds(
    generics: &Generics,
    bounds: &[TypeParamBound],
    errors: &mut Errors,
) -> Generics {
    for lifetime in generics.lifetimes() {
        let hint = "requests and events outlive the call that hands them over, so they borrow \
                    nothing: own the data";
        errors.push(Error::new_spanned(lifetime, hint));
    }
    let mut generics = generics.clone();
    let parameters: Vec<_> = generics.type_params().map(|param| param.ident.clone()).collect();
    if parameters.is_empty() {
        return generics;
    }
    let predicates = &mut generics.make_where_clause().predicates;
    for parameter in parameters {
        predicates.push(parse_quote!(#parameter: #(#bounds)+*));
    }
    generics
}
