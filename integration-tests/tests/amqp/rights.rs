//! The tables of docs/rights.md for RabbitMQ: every row works with its permissions, and with none fewer.

use std::sync::Arc;
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, AmqpSubscription, DeclareMode, ErrorKind};
use cqrs_core::{MessageBroker, Retry, Subscribe};
use futures_util::future::join_all;
use integration_tests::rights::{self, Refusal};
use integration_tests::{amqp, servers};
use lapin::options::QueueDeclareOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PASSWORD: &str = "rights-secret";

/// A permission on a queue or an exchange. RabbitMQ has a pattern of names for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    Configure,
    Write,
    Read,
}

/// The action of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Producer,
    ProducerThatDeclares,
    Consumer,
    ConsumerThatDeclares,
}

impl Role {
    fn declares(self) -> bool {
        matches!(self, Self::ProducerThatDeclares | Self::ConsumerThatDeclares)
    }

    fn consumes(self) -> bool {
        matches!(self, Self::Consumer | Self::ConsumerThatDeclares)
    }

    /// The row of docs/rights.md.
    fn rights(self, exchange: &str, queue: &str) -> Vec<(May, String)> {
        let [dead, retry, quarantine] =
            ["dead", "retry.1s", "quarantine"].map(|part| format!("{queue}.{part}"));
        let all = |may, names: &[&str]| {
            names.iter().map(|name| (may, (*name).to_owned())).collect::<Vec<_>>()
        };
        match self {
            Self::Producer => all(May::Write, &[exchange]),
            Self::ProducerThatDeclares => {
                [all(May::Configure, &[exchange]), all(May::Write, &[exchange])].concat()
            }
            Self::Consumer => {
                [all(May::Read, &[queue]), all(May::Write, &["amq.default"])].concat()
            }
            Self::ConsumerThatDeclares => [
                all(May::Configure, &[exchange, queue, &dead, &retry, &quarantine]),
                all(May::Write, &[queue, "amq.default"]),
                all(May::Read, &[exchange, queue, &retry, &quarantine]),
            ]
            .concat(),
        }
    }
}

/// The end of a role with all of its rights.
#[derive(Debug)]
struct Played {
    /// Messages left in the quarantine.
    quarantined: u32,
}

/// A virtual host of the test's own, and the users in it. `delete` takes them away.
struct Place {
    vhost: String,
    users: std::cell::RefCell<Vec<String>>,
}

impl Place {
    async fn new() -> Self {
        let vhost = amqp::fresh("rights");
        manage("PUT", &format!("vhosts/{vhost}"), "{}").await;
        let place = Self { vhost, users: Vec::new().into() };
        place.permit("guest", ".*", ".*", ".*").await;
        place
    }

    async fn limit(&self, name: &str, value: i32) {
        let value = serde_json::json!({"value": value});
        let path = format!("vhost-limits/{}/{name}", self.vhost);
        manage("PUT", &path, &value.to_string()).await;
    }

    async fn permit(&self, user: &str, configure: &str, write: &str, read: &str) {
        let rights = serde_json::json!({"configure": configure, "write": write, "read": read});
        manage("PUT", &format!("permissions/{}/{user}", self.vhost), &rights.to_string()).await;
    }

    /// A new user with these rights.
    async fn user(&self, rights: &[(May, String)]) -> String {
        let user = amqp::fresh("user");
        self.users.borrow_mut().push(user.clone());
        let login = serde_json::json!({"password": PASSWORD, "tags": ""});
        manage("PUT", &format!("users/{user}"), &login.to_string()).await;
        let pattern = |may: May| {
            let names = rights.iter().filter(|(of, _)| *of == may);
            let names: Vec<_> = names.map(|(_, name)| name.replace('.', "\\.")).collect();
            match names.is_empty() {
                true => "^$".to_owned(),
                false => format!("^({})$", names.join("|")),
            }
        };
        let patterns = [May::Configure, May::Write, May::Read].map(pattern);
        self.permit(&user, &patterns[0], &patterns[1], &patterns[2]).await;
        user
    }

    fn config(&self, login: &str, exchange: &str, declare: DeclareMode) -> AmqpConfig {
        let address = amqp::address();
        let dsn = format!("amqp://{login}@{address}/{}", self.vhost);
        let mut config = amqp::config_at(dsn, exchange);
        config.declare = declare;
        config.publish_timeout = Duration::from_secs(5);
        config
    }

    /// Plays a role with these rights only, on names of its own.
    async fn play(&self, role: Role, without: Option<usize>) -> Result<Played, Refusal> {
        let (exchange, topic, group) = (amqp::fresh("x"), amqp::fresh("t"), "group");
        let queue = format!("{topic}.{group}");
        let guest = self.config("guest:guest", &exchange, DeclareMode::Declare);
        let guest = Arc::new(AmqpMessageBroker::new(guest).unwrap());
        let subscription = |declare| {
            let retry = Retry::none().delayed([Duration::from_secs(1)]);
            let of_amqp = AmqpSubscription::new().with_declare(declare);
            rights::subscription(&topic, group).retry(retry).option(of_amqp)
        };
        let mut permissions = role.rights(&exchange, &queue);
        let removed = without.map(|right| permissions.remove(right));
        let user = self.user(&permissions).await;
        // A passive declare takes a permission of any kind.
        let declare = match role {
            Role::Producer => DeclareMode::Passive,
            Role::Consumer => DeclareMode::None,
            Role::ProducerThatDeclares | Role::ConsumerThatDeclares => DeclareMode::Declare,
        };
        // Another user has declared everything for a role that does not declare.
        if !role.declares() {
            let declared = subscription(DeclareMode::Declare);
            let everything =
                rights::consume(guest.clone(), declared, 1, rights::fill(&*guest, &topic));
            everything.await.expect("guest may do everything");
        }
        let config = self.config(&format!("{user}:{PASSWORD}"), &exchange, declare);
        let broker = Arc::new(AmqpMessageBroker::new(config).unwrap());
        if !role.consumes() {
            let broker: &dyn Subscribe = &*broker;
            let message = cqrs_core::Message::new(&*topic, "{}").with_mandatory(false);
            return rights::publish(broker, message).await.map(|()| Played { quarantined: 0 });
        }
        // A queue that exists takes no right to declare it.
        if role.declares() && removed.is_none_or(|(may, _)| may != May::Configure) {
            self.quarantine(&queue).await;
        }
        let fill = rights::fill(&*guest, &topic);
        rights::consume(broker, subscription(declare), 2, fill).await?;
        let quarantined = if role.declares() { self.quarantined(&queue).await } else { 0 };
        Ok(Played { quarantined })
    }

    async fn channel(&self) -> (lapin::Connection, lapin::Channel) {
        let dsn = format!("amqp://guest:guest@{}/{}", amqp::address(), self.vhost);
        let properties = lapin::ConnectionProperties::default();
        let connection = lapin::Connection::connect(&dsn, properties).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    /// Puts a message into the quarantine of `queue`, as a process that died would have.
    async fn quarantine(&self, queue: &str) {
        let (_connection, channel) = self.channel().await;
        let name = format!("{queue}.quarantine");
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = lapin::types::FieldTable::default();
        let quorum = lapin::types::AMQPValue::LongString("quorum".into());
        arguments.insert("x-queue-type".into(), quorum);
        channel.queue_declare(name.as_str().into(), options, arguments).await.unwrap();
        let (options, properties) = (Default::default(), lapin::BasicProperties::default());
        channel.confirm_select(Default::default()).await.unwrap();
        let put =
            channel.basic_publish("".into(), name.as_str().into(), options, b"no", properties);
        put.await.unwrap().await.unwrap();
    }

    /// Messages left in the quarantine of `queue`.
    async fn quarantined(&self, queue: &str) -> u32 {
        let (_connection, channel) = self.channel().await;
        let name = format!("{queue}.quarantine");
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(name.as_str().into(), options, Default::default());
        declared.await.unwrap().message_count()
    }

    async fn delete(self) {
        manage("DELETE", &format!("vhosts/{}", self.vhost), "").await;
        for user in self.users.into_inner() {
            manage("DELETE", &format!("users/{user}"), "").await;
        }
    }
}

/// A request to RabbitMQ's management API, as the administrator.
async fn manage(method: &str, path: &str, body: &str) {
    let address = servers::reachable("CQRS_TEST_RABBITMQ_MANAGEMENT", "localhost:15672");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "{method} /api/{path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
}

/// The limit of queues has the reply code of a queue that exists with other properties.
#[tokio::test(flavor = "multi_thread")]
async fn missing_dead_letter_queue_is_named_at_the_limit() {
    let place = Place::new().await;
    // The queue itself.
    place.limit("max-queues", 1).await;
    let config = place.config("guest:guest", &amqp::fresh("x"), DeclareMode::Declare);
    let broker = Arc::new(AmqpMessageBroker::new(config).unwrap());
    let topic = amqp::fresh("t");
    let fill = async { panic!("it consumes without a dead-letter queue") };
    let consumed = rights::consume(broker, rights::subscription(&topic, "g"), 1, fill).await;
    place.delete().await;
    let text = consumed.unwrap_err().text;
    assert!(text.contains(&format!("{topic}.g.dead")) && text.contains("limit"), "{text}");
    assert_eq!(text.matches("406").count(), 1, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_waits_for_room_for_a_connection() {
    let place = Place::new().await;
    place.limit("max-connections", 0).await;
    let mut config = place.config("guest:guest", &amqp::fresh("x"), DeclareMode::Declare);
    config.connect_timeout = Duration::from_secs(3);
    let full = AmqpMessageBroker::connect(config.clone()).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Connection, "{full:?}");
    assert!(format!("{full:?}").contains("connection limit (0) is reached"), "{full:?}");
    place.limit("max-connections", -1).await;
    let broker = AmqpMessageBroker::connect(config).await.unwrap();
    assert_eq!(broker.shutdown(Duration::from_secs(5)).await.undelivered, 0);
    place.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_needs_exactly_its_documented_rights() {
    const ROLES: [Role; 4] =
        [Role::Producer, Role::ProducerThatDeclares, Role::Consumer, Role::ConsumerThatDeclares];
    let _alone = crate::QUARANTINE.lock().await;
    let place = Place::new().await;
    let mut all = Vec::new();
    for role in ROLES {
        let rights = role.rights("EXCHANGE", "QUEUE");
        let whole = place.play(role, None).await;
        let less = join_all((0..rights.len()).map(|right| place.play(role, Some(right)))).await;
        all.push((role, rights, whole, less));
    }
    place.delete().await;
    for (role, rights, whole, less) in all {
        let whole = whole.as_ref().unwrap_or_else(|refusal| panic!("{role:?}: {refusal:?}"));
        assert_eq!(whole.quarantined, 0, "{role:?}");
        for (right, refusal) in rights.iter().zip(less) {
            // Without this one it runs without the quarantine.
            if *right == (May::Read, "QUEUE.quarantine".to_owned()) {
                let played =
                    refusal.as_ref().unwrap_or_else(|refusal| panic!("{right:?}: {refusal:?}"));
                assert_eq!(played.quarantined, 1, "the server refuses to read it");
                continue;
            }
            let refusal = refusal.as_ref().expect_err(&format!("{role:?} works without {right:?}"));
            println!("RIGHTS {role:?} without {right:?}: {:.1?}: {}", refusal.after, refusal.text);
            assert!(rights::is_refusal(&refusal.text), "{role:?} without {right:?}: {refusal:?}");
            if role == Role::Consumer && right.1 == "amq.default" {
                assert!(refusal.text.contains("Stuck"), "the other messages go on: {refusal:?}");
            }
        }
    }
}
