use cqrs::codec::JsonDeserializer;
use cqrs::{Notification, Subscription};

#[derive(Notification)]
struct NoSerialize {
    user_id: u64,
}

#[derive(serde::Serialize, Notification)]
struct NoDeserialize {
    user_id: u64,
}

#[derive(Notification)]
#[cqrs(serializer = u32)]
struct NoSerializer;

struct NoNotification;

fn main() {
    let _ = Subscription::to("users").json::<NoDeserialize>();
    let _ = Subscription::to("users").decode::<NoDeserialize>(JsonDeserializer);
    let _ = Subscription::to("users").json::<NoNotification>();
}
