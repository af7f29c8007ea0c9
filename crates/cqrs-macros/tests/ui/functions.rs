use std::time::Duration;

use cqrs::{Delivery, HandlerError, Notification, NotificationEvent, Received, batch, each, manual};

#[derive(serde::Serialize, serde::Deserialize, Notification)]
struct UserCreated;

#[derive(Debug)]
struct NoError;

async fn other_error(_: NotificationEvent<UserCreated>, _: Received) -> Result<(), NoError> {
    Ok(())
}

fn main() {
    // What is right.
    let _ = each(|_: NotificationEvent<UserCreated>, _| async { Ok(()) });
    let _ = each::<UserCreated, _>(|event, received| async move {
        println!("{} {}", event.event_id, received.attempt());
        Ok::<(), HandlerError>(())
    });

    let _ = each(|_: NotificationEvent<UserCreated>, _: Received| async {});
    let _ = each(|_: NotificationEvent<UserCreated>, _: Received| {});
    let _ = each(other_error);
    let _ = each(|_: NotificationEvent<UserCreated>| async { Ok(()) });
    let _ = each(|_: UserCreated, _: Received| async { Ok(()) });
    let _ = manual(|_: NotificationEvent<UserCreated>, delivery: Delivery| delivery.ack());
    let _ = manual(|_: NotificationEvent<UserCreated>, _: Received| async {});
    let _ = batch(9, Duration::ZERO, |_: Vec<(NotificationEvent<UserCreated>, Received)>| async {});
    let _ = batch(9, Duration::ZERO, |_: Vec<NotificationEvent<UserCreated>>| async { Ok(()) });
}
