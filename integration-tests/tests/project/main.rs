//! The examples on real servers, and what a user's build gets.

mod examples;
mod packaging;
mod scripts;
