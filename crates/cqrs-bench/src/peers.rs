//! [`Peer`]: another framework's program, which runs a scenario when it is asked. It lives as long as the run.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::measure::{Round, Side};
pub(crate) use crate::protocol::{Answer, Broker, Request, Target};
use crate::settings::Settings;

#[derive(Debug, Clone)]
pub(crate) struct Peer {
    name: String,
    pipes: Arc<Mutex<Pipes>>,
}

#[derive(Debug)]
struct Pipes {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Starts the program of `NAME=COMMAND`.
impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("it is NAME=COMMAND")?;
        let mut words = command.split_whitespace();
        let program = words.next().ok_or("the command is missing")?;
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let (requests, answers) =
            child.stdin.take().zip(child.stdout.take()).ok_or("it has no pipes")?;
        let pipes = Pipes { child, requests, answers: BufReader::new(answers) };
        Ok(Self { name: name.to_owned(), pipes: Arc::new(Mutex::new(pipes)) })
    }
}

impl Peer {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// True if the framework has the scenario: a request of no messages measures nothing.
    pub(crate) async fn has(&self, request: &Request) -> bool {
        let mut request = request.clone();
        if let Request::Consume { messages, .. } = &mut request {
            *messages = 0;
        }
        self.ask(&request).await.is_some()
    }

    /// Runs one round; `None` if the framework does not have the scenario.
    pub(crate) async fn ask(&self, request: &Request) -> Option<Round> {
        let line = serde_json::to_string(request).expect("a request");
        let pipes = Arc::clone(&self.pipes);
        let asked = tokio::task::spawn_blocking(move || {
            pipes.lock().unwrap_or_else(PoisonError::into_inner).ask(&line)
        });
        match asked.await.expect("a line each way") {
            Answer::Measured { value, cpu_us, cores } => {
                Some(Round { values: vec![value], cpu_us: Some(cpu_us), cores })
            }
            Answer::Unsupported { unsupported } => {
                eprintln!("{}: {unsupported}", self.name);
                None
            }
            Answer::Failed { error } => panic!("{}: {error}", self.name),
        }
    }
}

impl Pipes {
    fn ask(&mut self, line: &str) -> Answer {
        let mut answer = String::new();
        let asked = writeln!(self.requests, "{line}")
            .and_then(|()| self.requests.flush())
            .and_then(|()| self.answers.read_line(&mut answer));
        match asked {
            Ok(1..) => serde_json::from_str(&answer)
                .unwrap_or_else(|error| panic!("{answer} is no answer: {error}")),
            ended => panic!("the program ended: {ended:?}, {:?}", self.child.try_wait()),
        }
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        let _is_gone_already = self.child.kill();
        let _is_known = self.child.wait();
    }
}

impl Target {
    pub(crate) fn kafka(servers: &str, topic: &str) -> Self {
        Self { broker: Broker::Kafka, address: servers.to_owned(), name: topic.to_owned() }
    }

    pub(crate) fn amqp(dsn: &str, name: &str) -> Self {
        Self { broker: Broker::Amqp, address: dsn.to_owned(), name: name.to_owned() }
    }
}

impl Settings {
    /// A side for each peer, which answers `request`.
    pub(crate) fn peer_sides<'s>(&'s self, request: &Request) -> Vec<Side<'s>> {
        let side = |peer: &'s Peer| {
            let request = request.clone();
            Side::optional(peer.name(), move || {
                let request = request.clone();
                async move { peer.ask(&request).await }
            })
        };
        self.peers.iter().map(side).collect()
    }
}
