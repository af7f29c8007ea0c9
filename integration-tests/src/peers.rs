//! [`Peer`]: a Python service in its own process (`peers/peer.py`), in one of the environments of
//! `scripts/peers`; interop tests let it publish or consume with the real packages.

#![allow(clippy::unwrap_used)] // A helper of tests fails the test.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// The limit of a peer's answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of a peer's stderr that a failure shows.
const SHOWN: usize = 60;

/// A Python environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Python {
    /// python-cqrs 4.
    Cqrs4,
    /// python-cqrs 5.
    Cqrs5,
    /// FastStream with newer clients than python-cqrs asks for.
    FastStream,
    /// confluent-kafka with the serializers of its schema registry client.
    Confluent,
}

impl Python {
    fn variable(self) -> &'static str {
        match self {
            Self::Cqrs4 => "CQRS_PEER_CQRS4",
            Self::Cqrs5 => "CQRS_PEER_CQRS5",
            Self::FastStream => "CQRS_PEER_FASTSTREAM",
            Self::Confluent => "CQRS_PEER_CONFLUENT",
        }
    }

    fn interpreter(self) -> String {
        let variable = self.variable();
        let hint = r#"run `scripts/peers up`, then `eval "$(scripts/peers env)"`"#;
        match std::env::var(variable) {
            Ok(path) if Path::new(&path).exists() => path,
            Ok(path) => panic!("no file {path} ({variable}): {hint}"),
            Err(_) => panic!("{variable} is not set: {hint}"),
        }
    }
}

/// A Python service. Killed when it is dropped; ends by itself when this process does.
#[derive(Debug)]
pub struct Peer {
    child: Mutex<Child>,
    stdin: Mutex<ChildStdin>,
    line: Arc<Line>,
    last: AtomicU64,
}

/// The answers of a peer and their waiters.
#[derive(Debug, Default)]
struct Line {
    answers: Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>,
    subscriptions: Mutex<HashMap<String, mpsc::UnboundedSender<Value>>>,
    stderr: Mutex<VecDeque<String>>,
}

impl Line {
    fn read(&self, line: &str) {
        let mut line: Value = serde_json::from_str(line).expect("a line of JSON");
        if let Some(number) = line["id"].as_u64() {
            let answer = match line["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => Ok(line["ok"].take()),
            };
            if let Some(waiting) = self.answers.lock().unwrap().remove(&number) {
                let _given_up = waiting.send(answer);
            }
        } else if let Some(name) = line["subscription"].as_str()
            && let Some(inbox) = self.subscriptions.lock().unwrap().get(name)
        {
            let _given_up = inbox.send(line["got"].take());
        }
    }

    /// The peer has ended.
    fn ended(&self) {
        self.answers.lock().unwrap().clear();
        self.subscriptions.lock().unwrap().clear();
    }

    fn log(&self, line: String) {
        let mut stderr = self.stderr.lock().unwrap();
        stderr.push_back(line);
        if stderr.len() > SHOWN {
            stderr.pop_front();
        }
    }

    fn said(&self) -> String {
        let stderr = self.stderr.lock().unwrap();
        stderr.iter().map(|line| format!("\n    {line}")).collect()
    }
}

impl Peer {
    /// A process for this test only.
    ///
    /// # Panics
    /// When the environment is missing.
    pub fn start(python: Python) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/peer.py");
        let mut child = Command::new(python.interpreter())
            .arg(program)
            // Naive times are local: python-cqrs writes them so, and we read them as UTC.
            .env("TZ", "UTC")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("DEFAULT_OUTPUT_TOPIC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let line = Arc::new(Line::default());
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let stderr = child.stderr.take().unwrap();
        // Threads, not tasks: a shared peer outlives the runtime of the test that started it.
        let reading = Arc::clone(&line);
        thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                reading.read(&text);
            }
            reading.ended();
        });
        let logging = Arc::clone(&line);
        thread::spawn(move || {
            for text in BufReader::new(stderr).lines().map_while(Result::ok) {
                logging.log(text);
            }
        });
        let (child, stdin) = (Mutex::new(child), Mutex::new(stdin));
        Self { child, stdin, line, last: AtomicU64::new(0) }
    }

    /// The process shared by the tests, started on first use.
    pub fn shared(python: Python) -> &'static Self {
        static PEERS: [OnceLock<Peer>; 4] = [const { OnceLock::new() }; 4];
        PEERS[python as usize].get_or_init(|| Self::start(python))
    }

    /// The peer's answer to a request, which must succeed.
    pub async fn call(&self, what: &str, arguments: Value) -> Value {
        match self.try_call(what, arguments).await {
            Ok(answer) => answer,
            Err(error) => panic!("{what} of the peer: {error}; its stderr:{}", self.line.said()),
        }
    }

    /// The peer's answer to a request.
    ///
    /// # Errors
    /// The text of Python's exception.
    pub async fn try_call(&self, what: &str, mut arguments: Value) -> Result<Value, String> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.line.answers.lock().unwrap().insert(number, sender);
        arguments["id"] = number.into();
        arguments["do"] = what.into();
        let written = writeln!(self.stdin.lock().unwrap(), "{arguments}");
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) if written.is_ok() => answer,
            Err(_late) => panic!("{what}: no answer of the peer; its stderr:{}", self.line.said()),
            _ => panic!("{what}: the peer has ended; its stderr:{}", self.line.said()),
        }
    }

    /// Lets the peer consume into the returned inbox.
    pub async fn subscribe(&self, what: &str, mut arguments: Value) -> Inbox<'_> {
        let name = format!("s-{}", self.last.fetch_add(1, Ordering::Relaxed));
        let (sender, received) = mpsc::unbounded_channel();
        self.line.subscriptions.lock().unwrap().insert(name.clone(), sender);
        arguments["subscription"] = name.as_str().into();
        self.call(what, arguments).await;
        Inbox { peer: self, name, received }
    }

    /// `kill -9`; returns when the process is gone.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let _ended_already = child.kill();
        child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The messages that a peer's subscription receives.
#[derive(Debug)]
pub struct Inbox<'p> {
    peer: &'p Peer,
    name: String,
    received: mpsc::UnboundedReceiver<Value>,
}

impl Inbox<'_> {
    /// The next one.
    pub async fn next(&mut self) -> Value {
        match timeout(PATIENCE, self.received.recv()).await {
            Ok(Some(received)) => received,
            Ok(None) => panic!("the peer has ended; its stderr:{}", self.peer.line.said()),
            Err(_late) => panic!("nothing came; the peer's stderr:{}", self.peer.line.said()),
        }
    }

    /// The next ones.
    pub async fn take(&mut self, count: usize) -> Vec<Value> {
        let mut all = Vec::new();
        while all.len() < count {
            all.push(self.next().await);
        }
        all
    }

    /// The messages received so far.
    pub fn drain(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }

    /// Ends the subscription gracefully.
    pub async fn stop(self) {
        self.peer.call("unsubscribe", json!({ "subscription": self.name })).await;
        self.peer.line.subscriptions.lock().unwrap().remove(&self.name);
    }
}
