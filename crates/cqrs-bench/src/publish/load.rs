//! [`Load`]: the messages that all sides of a publish benchmark send, with the same window and tasks.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use cqrs_core::MessageBroker;

use crate::cpu::Stopwatch;
use crate::event::Template;
use crate::measure::{Round, Unit};

/// Unconfirmed messages, over all tasks.
pub(crate) const WINDOW: usize = cqrs_core::broker::Window::DEFAULT_MESSAGES;

/// How many messages, by how many tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) messages: usize,
    pub(crate) tasks: usize,
    pub(crate) window: usize,
}

/// A client that publishes numbered messages.
pub(crate) trait Publisher: Clone + Send + Sync + 'static {
    /// Hands message `number` to the client, and resolves to the future of its confirm.
    fn send(&self, number: usize) -> impl Future<Output = impl Future<Output = ()> + Send> + Send;
}

impl Load {
    /// Runs `tasks` tasks, each with its share of the messages and of the window. The clock stops at the last
    /// confirm.
    pub(crate) async fn run(self, publisher: impl Publisher) -> Round {
        let each = self.messages / self.tasks;
        let start = Stopwatch::start();
        let tasks: Vec<_> = (0..self.tasks)
            .map(|task| {
                let publisher = publisher.clone();
                tokio::spawn(self.publish(publisher, task * each..(task + 1) * each))
            })
            .collect();
        for task in tasks {
            task.await.expect("a publishing task");
        }
        Round::new(Unit::MessagesPerSecond, each * self.tasks, start.elapsed())
    }

    async fn publish(self, publisher: impl Publisher, numbers: std::ops::Range<usize>) {
        let window = (self.window / self.tasks).max(1);
        let mut confirms = VecDeque::with_capacity(window);
        for number in numbers {
            if confirms.len() == window
                && let Some(oldest) = confirms.pop_front()
            {
                oldest.await;
            }
            confirms.push_back(publisher.send(number).await);
        }
        for confirm in confirms {
            confirm.await;
        }
    }
}

/// A broker of this framework.
#[derive(Clone)]
pub(crate) struct Ours {
    pub(crate) broker: Arc<dyn MessageBroker>,
    pub(crate) topic: Arc<str>,
    pub(crate) template: Template,
}

impl Publisher for Ours {
    async fn send(&self, number: usize) -> impl Future<Output = ()> + Send {
        let message = self.template.message(&self.topic, number);
        let receipt = self.broker.enqueue(message).await.expect("a place in the window");
        async move {
            receipt.await.expect("a confirm");
        }
    }
}
