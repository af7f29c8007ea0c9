//! The load both sides of a publish benchmark carry: the same bodies, keys, window and tasks.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cqrs_core::codec::Serializer as _;
use cqrs_core::message::content_type;
use cqrs_core::{Event, Message, MessageBroker, NotificationEvent};
use cqrs_protobuf::ProtobufSerializer;
use prost::Message as _;

use crate::measure::Unit;

/// Messages in flight, over all tasks.
pub(crate) const WINDOW: usize = cqrs_core::broker::Window::DEFAULT_MESSAGES;
const KEYS: usize = 1_000;

/// What the bodies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// The same 256 bytes each time: what the broker costs.
    Bytes,
    /// An event of about 256 bytes, encoded anew each time, with the headers that name it.
    Protobuf,
}

/// An event whose message has 256 bytes.
#[derive(Clone, PartialEq, prost::Message, cqrs_macros::Notification)]
#[cqrs(crate = "cqrs_core", serializer = ProtobufSerializer)]
pub(crate) struct Encoded {
    #[prost(string, tag = "1")]
    user_id: String,
    #[prost(sint64, tag = "2")]
    amount: i64,
    #[prost(string, tag = "3")]
    filling: String,
}

impl Encoded {
    pub(crate) const NAME: &str = <Self as Event>::NAME;

    /// The `index`th.
    fn new(index: usize) -> Self {
        let user_id = format!("{:04}", index % KEYS);
        Self { user_id, amount: index as i64, filling: "x".repeat(240) }
    }
}

/// What is published, and by how many tasks.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) topic: Arc<str>,
    pub(crate) messages: usize,
    pub(crate) tasks: usize,
    pub(crate) format: Format,
    body: Bytes,
    keys: Arc<Vec<Bytes>>,
}

impl Load {
    pub(crate) fn new(topic: &str, messages: usize, tasks: usize, format: Format) -> Self {
        let keys = (0..KEYS).map(|key| Bytes::from(format!("key-{key}"))).collect();
        Self {
            topic: topic.into(),
            messages,
            tasks,
            format,
            body: Bytes::from(vec![b'x'; 256]),
            keys: Arc::new(keys),
        }
    }

    pub(crate) fn key(&self, index: usize) -> Bytes {
        self.keys[index % KEYS].clone()
    }

    /// The raw side's body.
    pub(crate) fn body(&self, index: usize) -> Bytes {
        match self.format {
            Format::Bytes => self.body.clone(),
            Format::Protobuf => Encoded::new(index).encode_to_vec().into(),
        }
    }

    fn message(&self, index: usize) -> Message {
        let topic = Arc::clone(&self.topic);
        let message = match self.format {
            Format::Bytes => Message::new(topic, self.body.clone()),
            Format::Protobuf => {
                let event = NotificationEvent::new(Encoded::new(index));
                let encoded = ProtobufSerializer.serialize(&event).expect("a message");
                Message::new(topic, encoded.body)
                    .with_id(event.event_id)
                    .with_name(&*event.event_name)
                    .with_content_type(content_type::PROTOBUF)
            }
        };
        message.with_key(self.key(index))
    }

    /// Runs `tasks` tasks, each with its share of the messages and of the window; `send` resolves to
    /// the future of a confirm. Returns messages per second, confirms included.
    pub(crate) async fn run<S, F, C>(&self, send: S) -> f64
    where
        S: Fn(usize) -> F + Clone + Send + 'static,
        F: Future<Output = C> + Send,
        C: Future<Output = ()> + Send,
    {
        let (each, window) = (self.messages / self.tasks, (WINDOW / self.tasks).max(1));
        let start = Instant::now();
        let tasks: Vec<_> = (0..self.tasks)
            .map(|task| {
                let send = send.clone();
                tokio::spawn(async move {
                    let mut confirms = VecDeque::with_capacity(window);
                    for index in task * each..(task + 1) * each {
                        if confirms.len() == window
                            && let Some(oldest) = confirms.pop_front()
                        {
                            let oldest: C = oldest;
                            oldest.await;
                        }
                        confirms.push_back(send(index).await);
                    }
                    for confirm in confirms {
                        confirm.await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a publishing task");
        }
        Unit::MessagesPerSecond.of(each * self.tasks, start.elapsed())
    }

    /// The same through a broker of ours.
    pub(crate) async fn run_ours(&self, broker: &Arc<dyn MessageBroker>) -> f64 {
        let (load, broker) = (self.clone(), Arc::clone(broker));
        self.run(move |index| {
            let (message, broker) = (load.message(index), Arc::clone(&broker));
            async move {
                let receipt = broker.enqueue(message).await.expect("a place in the window");
                async move {
                    receipt.await.expect("a confirm");
                }
            }
        })
        .await
    }
}
