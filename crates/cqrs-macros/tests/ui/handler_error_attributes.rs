use cqrs::IntoHandlerError;

#[derive(Debug, IntoHandlerError)]
#[cqrs(topic = "mails")]
enum Keys {
    #[cqrs(permanent, retryable)]
    Both,
    #[cqrs(transparent)]
    Two(u8, u8),
}

#[derive(IntoHandlerError)]
union NoEnum {
    a: u8,
}

fn main() {}
