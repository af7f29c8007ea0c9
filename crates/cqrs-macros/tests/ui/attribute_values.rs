use cqrs::{Command, Notification};

#[derive(Notification)]
#[cqrs(name = "", topic = " ", key = user_id, mandatory = "no")]
struct Literals {
    user_id: u64,
}

#[derive(Command)]
#[cqrs(response = "u64", error, crate = cqrs_core, name = 'A')]
struct Types;

#[derive(Command)]
#[cqrs = "Add"]
struct Form;

fn main() {}
