//! The examples on real servers, and what a user's build gets.

mod canary;
mod examples;
mod packaging;
mod scripts;
mod tutorial;
