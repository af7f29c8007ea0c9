//! The load both sides of a publish benchmark carry: the same bodies, keys, window and tasks.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cqrs_core::{Message, MessageBroker};

use crate::measure::{Comparison, Unit};

/// Messages in flight, over all tasks.
pub(crate) const WINDOW: usize = cqrs_core::broker::Window::DEFAULT_MESSAGES;
const KEYS: usize = 1_000;

/// What is published, and by how many tasks.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) topic: Arc<str>,
    pub(crate) messages: usize,
    pub(crate) tasks: usize,
    body: Bytes,
    keys: Arc<Vec<Bytes>>,
}

impl Load {
    pub(crate) fn new(topic: &str, messages: usize, tasks: usize) -> Self {
        let keys = (0..KEYS).map(|key| Bytes::from(format!("key-{key}"))).collect();
        Self {
            topic: topic.into(),
            messages,
            tasks,
            body: Bytes::from(vec![b'x'; 256]),
            keys: Arc::new(keys),
        }
    }

    pub(crate) fn key(&self, index: usize) -> Bytes {
        self.keys[index % KEYS].clone()
    }

    pub(crate) fn body(&self) -> Bytes {
        self.body.clone()
    }

    fn message(&self, index: usize) -> Message {
        Message::new(Arc::clone(&self.topic), self.body()).with_key(self.key(index))
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

    /// Interleaved rounds of both sides after one warm-up each.
    pub(crate) async fn compare<F>(
        &self,
        scenario: String,
        rounds: usize,
        broker: &Arc<dyn MessageBroker>,
        raw: impl Fn() -> F,
    ) where
        F: Future<Output = f64>,
    {
        raw().await;
        self.run_ours(broker).await;
        let mut comparison = Comparison::new(scenario, Unit::MessagesPerSecond);
        for _ in 0..rounds {
            let baseline = raw().await;
            comparison.add(self.run_ours(broker).await, baseline);
        }
        comparison.print();
    }
}
