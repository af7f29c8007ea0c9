use cqrs::Notification;

#[derive(serde::Serialize)]
struct Address {
    street: String,
}

#[derive(serde::Serialize, Notification)]
#[cqrs(key = "address")]
struct NoDisplay {
    address: Address,
}

#[derive(serde::Serialize, Notification)]
#[cqrs(key = "address")]
struct NoDisplayInside {
    address: Option<Address>,
}

#[derive(serde::Serialize, Notification)]
#[cqrs(key = "address.town")]
struct NoSuchPath {
    address: Address,
}

fn main() {}
