//! [`AclKafka`]: a second Kafka with ACLs and a login per user, started and killed by a test.
//!
//! It runs from the jars that `scripts/brokers` has installed, on free ports of loopback.

#![allow(clippy::unwrap_used)] // A helper of tests fails the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cqrs_kafka::{KafkaConfig, Sasl, SecurityProtocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::consuming::fixture::until;
use crate::servers;

/// The superuser.
pub const ADMIN: &str = "admin";
/// The number of other users: `u0`, `u1`, ...
pub const USERS: usize = 40;
/// The password of all users.
const PASSWORD: &str = "rights-secret";

/// The resource of a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum On {
    /// A topic.
    Topic = 2,
    /// A consumer group.
    Group = 3,
}

/// The operation of a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum May {
    /// Read, and with it describe.
    Read = 3,
    /// Write, and with it describe.
    Write = 4,
    /// Create.
    Create = 5,
}

/// One right: an ACL of one operation, on one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right(pub May, pub On, pub String);

/// The server. Dropping the value ends it.
#[derive(Debug)]
pub struct AclKafka {
    child: Child,
    directory: PathBuf,
    address: String,
}

impl AclKafka {
    /// Starts it, and waits until it accepts logins.
    pub async fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("cqrs-acl-{}", Uuid::now_v7()));
        std::fs::create_dir_all(&directory).unwrap();
        let (port, controller) = (free_port(), free_port());
        let properties = directory.join("server.properties");
        std::fs::write(&properties, settings(&directory, port, controller)).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut format = java("kafka.tools.StorageTool");
        format.args(["format", "--cluster-id", "Y3Fycy1yaWdodHMtdGVzdA", "--config"]);
        let formatted = format.arg(&properties).output().expect("java starts");
        let said = String::from_utf8_lossy(&formatted.stderr);
        assert!(formatted.status.success(), "Kafka's storage is not formatted: {said}");
        let child = java("kafka.Kafka")
            .arg(&properties)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("java starts");
        let mut server = Self { child, directory, address: format!("127.0.0.1:{port}") };
        let end = Instant::now() + Duration::from_secs(90);
        while server.login().await.is_err() {
            let ended = server.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() >= end {
                let log = std::fs::read_to_string(server.directory.join("log"));
                panic!("Kafka with ACLs does not start ({ended:?}): {}", log.unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        server
    }

    /// Settings of a user.
    pub fn config(&self, user: &str) -> KafkaConfig {
        let mut config =
            KafkaConfig::new([self.address.clone()]).with_sasl(Sasl::plain(user, PASSWORD));
        config.security_protocol = SecurityProtocol::SaslPlaintext;
        config
    }

    /// Gives rights to a user without any, and waits until the broker knows them.
    pub async fn grant(&self, user: &str, rights: &[Right]) {
        const CREATE_ACLS: i16 = 30;
        const LITERAL: u8 = 3;
        const ALLOW: u8 = 3;
        let mut body = i32::try_from(rights.len()).unwrap().to_be_bytes().to_vec();
        for Right(may, on, name) in rights {
            body.push(*on as u8);
            string(&mut body, name);
            body.push(LITERAL);
            string(&mut body, &format!("User:{user}"));
            string(&mut body, "*");
            body.extend([*may as u8, ALLOW]);
        }
        let mut stream = self.login().await.unwrap();
        let answer = ask(&mut stream, CREATE_ACLS, 1, &body).await.unwrap();
        // After the throttle time and their number: an error code and a message for each, here without
        // text.
        let accepted = answer[8..].chunks(4).all(|result| result.starts_with(&[0, 0]));
        assert!(accepted, "{user}: {rights:?}: {}", String::from_utf8_lossy(&answer[8..]));
        // The controller has them now. The broker, which decides, reads them from it later.
        let knows = async || self.rights_of(user).await == rights.len();
        until(&format!("{user} has {rights:?}"), knows).await;
    }

    /// The number of rights by which the broker decides on a user.
    async fn rights_of(&self, user: &str) -> usize {
        const DESCRIBE_ACLS: i16 = 29;
        const ANY: u8 = 1;
        const NO_TEXT: [u8; 2] = (-1_i16).to_be_bytes();
        let principal = format!("User:{user}");
        // The resource's type, name and pattern; the user; the host; the operation; allowed or denied.
        let mut body = [&[ANY], &NO_TEXT[..], &[ANY]].concat();
        string(&mut body, &principal);
        body.extend([&NO_TEXT[..], &[ANY, ANY]].concat());
        let mut stream = self.login().await.unwrap();
        let answer = ask(&mut stream, DESCRIBE_ACLS, 1, &body).await.unwrap();
        let mut name = Vec::new();
        string(&mut name, &principal);
        answer.windows(name.len()).filter(|part| *part == name).count()
    }

    /// Creates a topic, of one partition.
    pub async fn create_topic(&self, topic: &str) {
        const CREATE_TOPICS: i16 = 19;
        let mut body = 1_i32.to_be_bytes().to_vec();
        string(&mut body, topic);
        // Partitions, replicas; neither assignments nor settings; the time it may take; for real.
        body.extend([&[0, 0, 0, 1, 0, 1][..], &[0; 8], &10_000_i32.to_be_bytes(), &[0]].concat());
        let mut stream = self.login().await.unwrap();
        let answer = ask(&mut stream, CREATE_TOPICS, 2, &body).await.unwrap();
        // After the throttle time, their number and the name: an error code.
        let code = answer.get(8 + 2 + topic.len()..).and_then(|rest| rest.first_chunk());
        assert_eq!(code, Some(&[0, 0]), "{topic}: {}", String::from_utf8_lossy(&answer));
    }

    async fn login(&self) -> std::io::Result<TcpStream> {
        const HANDSHAKE: i16 = 17;
        const AUTHENTICATE: i16 = 36;
        let mut stream = TcpStream::connect(&self.address).await?;
        let mut mechanism = Vec::new();
        string(&mut mechanism, "PLAIN");
        ask(&mut stream, HANDSHAKE, 1, &mechanism).await?;
        let token = format!("\0{ADMIN}\0{PASSWORD}");
        let mut body = i32::try_from(token.len()).unwrap().to_be_bytes().to_vec();
        body.extend(token.as_bytes());
        let answer = ask(&mut stream, AUTHENTICATE, 0, &body).await?;
        match answer.first_chunk() {
            Some([0, 0]) => Ok(stream),
            _ => Err(std::io::Error::other("the login is refused")),
        }
    }
}

impl Drop for AclKafka {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _no_zombie = self.child.wait();
        let _best_effort = std::fs::remove_dir_all(&self.directory);
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Java with Kafka's jars, which exist where `scripts/brokers` runs local servers.
fn java(class: &str) -> Command {
    let kafka = servers::certs("ca.pem").parent().unwrap().parent().unwrap().join("kafka");
    let entries = std::fs::read_dir(&kafka).into_iter().flatten().flatten();
    let libraries =
        entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"lib-"));
    let jars = libraries.map(|entry| entry.path()).max().unwrap_or_else(|| {
        panic!(
            "this test starts a Kafka of its own from the jars of a local one, and {kafka:?} has none: run \
             `CQRS_BROKERS=local scripts/brokers up kafka` once, with the containers down"
        )
    });
    let java = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let java = java.filter(|java| java.exists()).unwrap_or_else(|| "java".into());
    let mut command = Command::new(java);
    command.args(["-Xms64m", "-Xmx384m", "-XX:TieredStopAtLevel=1", "-cp"]);
    command.arg(jars.join("*")).arg(class).stdin(Stdio::null());
    command
}

fn settings(directory: &Path, port: u16, controller: u16) -> String {
    use std::fmt::Write as _;
    let mut users = format!("user_{ADMIN}=\"{PASSWORD}\"");
    for user in 0..USERS {
        write!(users, " user_u{user}=\"{PASSWORD}\"").unwrap();
    }
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         log.dirs={data}\n\
         listeners=SASL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         listener.security.protocol.map=SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         inter.broker.listener.name=SASL\n\
         controller.listener.names=CONTROLLER\n\
         sasl.mechanism.inter.broker.protocol=PLAIN\n\
         sasl.enabled.mechanisms=PLAIN\n\
         listener.name.sasl.plain.sasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required \
         username=\"{ADMIN}\" password=\"{PASSWORD}\" {users};\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:{ADMIN};User:ANONYMOUS\n\
         auto.create.topics.enable=true\n\
         num.partitions=1\n\
         offsets.topic.num.partitions=1\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         log.index.size.max.bytes=1048576\n",
        data = directory.join("data").display(),
    )
}

/// Sends a request of Kafka's protocol; the answer without its header.
async fn ask(
    stream: &mut TcpStream,
    api: i16,
    version: i16,
    body: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut request = [api.to_be_bytes(), version.to_be_bytes(), [0, 0], [0, 1]].concat();
    string(&mut request, "rights");
    request.extend(body);
    stream.write_all(&u32::try_from(request.len()).unwrap().to_be_bytes()).await?;
    stream.write_all(&request).await?;
    let mut answer = vec![0; usize::try_from(stream.read_u32().await?).unwrap()];
    stream.read_exact(&mut answer).await?;
    Ok(answer.split_off(4))
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend(i16::try_from(text.len()).unwrap().to_be_bytes());
    to.extend(text.as_bytes());
}
