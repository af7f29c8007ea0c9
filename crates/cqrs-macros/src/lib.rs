//! cqrs-macros
