//! A registry in memory behind a small HTTP/1.1 server with injected faults; used by these tests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cqrs_schema_registry::{RegistryConfig, SchemaRegistry};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

/// The fault that a request meets instead of an answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This status and body.
    Answer(u16, &'static str),
    /// This status, with the `authorization` header in the message.
    Echo(u16),
    /// The connection is closed.
    Close,
    /// No answer comes.
    Hang,
    /// A header says more bytes than come.
    Cut,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// As they were sent; the id is the place, counted from 1.
    schemas: Vec<Value>,
    subjects: BTreeMap<String, Vec<usize>>,
    /// Requests as they came: method and path, with the query.
    pub asked: Vec<String>,
    /// The `authorization` header of each.
    pub authorization: Vec<Option<String>>,
    /// Of the requests to come.
    pub faults: VecDeque<Fault>,
    /// Before every answer.
    pub delay: Duration,
    /// As Apicurio: no GUIDs, and no type in the answer to a look-up.
    pub plain: bool,
}

/// The server. It ends with the test.
#[derive(Clone)]
pub(crate) struct Server {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        let server = Self { url, state: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        server
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// Settings with which a busy machine is not asked twice.
    pub(crate) fn config(&self) -> RegistryConfig {
        let mut config = RegistryConfig::new([&*self.url]);
        config.reconnect.initial = Duration::from_millis(10);
        config.connect_timeout = Duration::from_secs(10);
        config.timeout = Duration::from_secs(10);
        config
    }

    pub(crate) fn client(&self) -> SchemaRegistry {
        SchemaRegistry::new(self.config()).unwrap()
    }

    /// One that does not wait for long, for [`Fault::Hang`].
    pub(crate) fn hurried_client(&self) -> SchemaRegistry {
        let mut config = self.config();
        config.timeout = Duration::from_secs(1);
        SchemaRegistry::new(config).unwrap()
    }

    async fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some((request, authorization, body)) = read(&mut stream).await {
            let (fault, delay) = {
                let mut state = self.state();
                state.asked.push(request.clone());
                state.authorization.push(authorization.clone());
                (state.faults.pop_front(), state.delay)
            };
            tokio::time::sleep(delay).await;
            let (status, text, missing) = match fault {
                None => {
                    let (status, answer) = self.state().answer(&request, &body);
                    (status, answer.to_string(), 0)
                }
                Some(Fault::Answer(status, text)) => (status, text.to_owned(), 0),
                Some(Fault::Echo(status)) => {
                    let header = authorization.unwrap_or_default();
                    let (status, answer) = refusal(status, 50001, &format!("who is {header}?"));
                    (status, answer.to_string(), 0)
                }
                Some(Fault::Close) => return,
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::Cut) => (200, "{\"schema\":".to_owned(), 10),
            };
            let length = text.len() + missing;
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n\
                 location: http://127.0.0.1:1/\r\ncontent-length: {length}\r\n\r\n"
            );
            if stream.write_all(format!("{head}{text}").as_bytes()).await.is_err() || missing > 0 {
                return;
            }
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<(String, Option<String>, Value)> {
    let (mut head, mut line) = (Vec::new(), String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        let mut lines = head.iter().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let request = head.first()?.trim_end_matches(" HTTP/1.1").to_owned();
    Some((request, header("authorization"), serde_json::from_slice(&body).unwrap_or_default()))
}

impl State {
    fn answer(&mut self, request: &str, body: &Value) -> (u16, Value) {
        let (method, target) = request.split_once(' ').unwrap();
        let path = target.split('?').next().unwrap();
        let path: Vec<_> = path.strip_prefix("/base/").unwrap_or(path).split('/').collect();
        match (method, &*path) {
            ("GET", ["subjects"]) => (200, json!(self.subjects.keys().collect::<Vec<_>>())),
            ("GET", ["schemas", "types"]) => (200, json!(["JSON", "PROTOBUF"])),
            ("GET", ["schemas", "ids", id]) => {
                let place = id.parse::<usize>().unwrap().wrapping_sub(1);
                match self.schemas.get(place) {
                    Some(schema) => (200, schema.clone()),
                    None => refusal(404, 40403, "Schema not found"),
                }
            }
            ("GET", ["schemas", "guids", guid]) if !self.plain => {
                let known = (1..=self.schemas.len()).find(|&id| guid_of(id).to_string() == **guid);
                match known {
                    Some(id) => (200, self.schemas[id - 1].clone()),
                    None => refusal(404, 40403, "Schema not found"),
                }
            }
            ("GET", ["subjects", subject, "versions", version]) => {
                let Some(ids) = self.subjects.get(*subject) else {
                    return refusal(404, 40401, "Subject not found");
                };
                let number = match *version {
                    "latest" => ids.len(),
                    number => number.parse().unwrap(),
                };
                match ids.get(number.wrapping_sub(1)) {
                    Some(&id) => (200, self.version(subject, number, id, true)),
                    None => refusal(404, 40402, "Version not found"),
                }
            }
            ("POST", ["subjects", subject]) => {
                let Some(ids) = self.subjects.get(*subject) else {
                    return refusal(404, 40401, "Subject not found");
                };
                match ids.iter().position(|&id| self.schemas[id - 1] == *body) {
                    Some(at) => (200, self.version(subject, at + 1, ids[at], !self.plain)),
                    None => refusal(404, 40403, "Schema not found"),
                }
            }
            ("POST", ["subjects", subject, "versions"]) => self.register(subject, body),
            ("POST", ["compatibility", "subjects", subject, "versions", "latest"]) => {
                match self.subjects.contains_key(*subject) {
                    true if text(body).contains("incompatible") => {
                        (200, json!({"is_compatible": false, "messages": ["it lacks a field"]}))
                    }
                    true => (200, json!({"is_compatible": true})),
                    false => refusal(404, 40401, "Subject not found"),
                }
            }
            _ => (404, json!({"error_code": 0, "message": "no resource"})),
        }
    }

    fn register(&mut self, subject: &str, body: &Value) -> (u16, Value) {
        if text(body).contains("invalid") {
            return refusal(422, 42201, "Invalid schema");
        }
        if text(body).contains("incompatible") {
            return refusal(409, 409, "it lacks a field");
        }
        let id = match self.schemas.iter().position(|schema| schema == body) {
            Some(place) => place + 1,
            None => {
                self.schemas.push(body.clone());
                self.schemas.len()
            }
        };
        let ids = self.subjects.entry(subject.to_owned()).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
        (200, json!({"id": id}))
    }

    fn version(&self, subject: &str, version: usize, id: usize, whole: bool) -> Value {
        let mut answer = self.schemas[id - 1].clone();
        answer["id"] = json!(id);
        answer["subject"] = json!(subject);
        answer["version"] = json!(version);
        if !self.plain {
            answer["guid"] = json!(guid_of(id));
        }
        if !whole {
            answer.as_object_mut().unwrap().remove("schemaType");
        }
        answer
    }
}

fn refusal(status: u16, code: u32, message: &str) -> (u16, Value) {
    (status, json!({"error_code": code, "message": message}))
}

fn text(body: &Value) -> &str {
    body["schema"].as_str().unwrap_or_default()
}

pub(crate) fn guid_of(id: usize) -> Uuid {
    // Its bytes are no text.
    Uuid::from_u128(u128::MAX - id as u128)
}
