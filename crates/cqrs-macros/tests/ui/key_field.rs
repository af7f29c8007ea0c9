use cqrs::Notification;

struct Address;

#[derive(serde::Serialize, Notification)]
#[cqrs(key = "usr_id")]
struct Misspelt {
    user_id: u64,
    r#type: u8,
}

#[derive(serde::Serialize, Notification)]
#[cqrs(key = "user..id")]
struct NoPath {
    user: u64,
}

#[derive(serde::Serialize, Notification)]
#[cqrs(key = "id")]
struct NoFields;

#[derive(serde::Serialize, Notification)]
#[cqrs(key = "id")]
enum NoStruct {
    A { id: u64 },
}

fn main() {}
