//! The state of all publishers; written by them, read by health checks and by expired messages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cqrs_core::broker::BrokerState;
use cqrs_core::consume::support::error_chain;
use tokio::sync::Notify;

use crate::connect::ConfirmChannels;
use crate::error::{AmqpError, ErrorKind};

/// The state of one publisher.
#[derive(Debug, Clone)]
pub(crate) enum PublisherState {
    /// No open channel (not yet, or lost); the last error if known.
    Down(Option<AmqpError>),
    /// An open channel, one of these on its connection.
    Ready(ConfirmChannels),
    Blocked(Arc<str>),
}

/// The states of all publishers. The lock is held for a copy only.
#[derive(Debug, Clone)]
pub(crate) struct Status(Arc<SharedStatus>);

#[derive(Debug)]
struct SharedStatus {
    publishers: Mutex<PublisherStates>,
    changed: Notify,
}

#[derive(Debug)]
struct PublisherStates {
    states: Vec<PublisherState>,
    /// Set after every publisher was ready once.
    ever_ready: bool,
}

impl Status {
    pub(crate) fn new(publishers: usize) -> Self {
        let states = vec![PublisherState::Down(None); publishers];
        Self(Arc::new(SharedStatus {
            publishers: Mutex::new(PublisherStates { states, ever_ready: false }),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn set(&self, publisher: usize, state: PublisherState) {
        {
            let mut publishers = self.lock();
            if let Some(slot) = publishers.states.get_mut(publisher) {
                *slot = state;
            }
            let ready = |state: &PublisherState| !matches!(state, PublisherState::Down(_));
            publishers.ever_ready |= publishers.states.iter().all(ready);
        }
        self.0.changed.notify_waiters();
    }

    /// Ready only when all publishers are.
    pub(crate) fn state(&self) -> BrokerState {
        let publishers = self.lock();
        let states = &publishers.states;
        if states.iter().any(|state| matches!(state, PublisherState::Down(_))) {
            let last_error = states.iter().find_map(|state| match state {
                PublisherState::Down(error) => {
                    error.as_ref().map(|error| error_chain(error).into())
                }
                _ => None,
            });
            return match publishers.ever_ready {
                false => BrokerState::Connecting { last_error },
                true => BrokerState::Disconnected {
                    last_error: last_error
                        .unwrap_or_else(|| Arc::from("a channel is being opened again")),
                },
            };
        }
        let blocked = states.iter().rev().find_map(|state| match state {
            PublisherState::Blocked(reason) => Some(Arc::clone(reason)),
            _ => None,
        });
        blocked.map_or(BrokerState::Ready, |reason| BrokerState::Blocked { reason })
    }

    /// The error that delays messages now, if any.
    pub(crate) fn cause(&self) -> Option<AmqpError> {
        let publishers = self.lock();
        let states = publishers.states.iter();
        let down = states.clone().find_map(|state| match state {
            PublisherState::Down(error) => error.clone(),
            PublisherState::Blocked(reason) => {
                let detail = format!("the server blocks publishers: {reason}");
                Some(AmqpError::new(ErrorKind::Blocked, detail))
            }
            PublisherState::Ready(_) => None,
        });
        let is_slow = |state: &PublisherState| match state {
            PublisherState::Ready(channels) => channels.has_unwritten(),
            _ => false,
        };
        down.or_else(|| {
            let detail = "messages wait to be written: the network or the server takes bytes slowly, or none";
            states.clone().any(is_slow).then(|| AmqpError::new(ErrorKind::Connection, detail))
        })
    }

    /// Waits until all publishers had a channel once.
    ///
    /// # Errors
    /// A failure to open one that waiting cannot fix.
    pub(crate) async fn connected(&self) -> Result<(), AmqpError> {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.lock().ever_ready {
                return Ok(());
            }
            if let Some(error) = self.cause().filter(|error| !error.is_retryable()) {
                return Err(error);
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, PublisherStates> {
        self.0.publishers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn ready() -> PublisherState {
        PublisherState::Ready(ConfirmChannels::default())
    }

    fn refused() -> AmqpError {
        AmqpError::new(ErrorKind::Connection, "refused")
    }

    #[test]
    fn ready_when_all_publishers_are() {
        let status = Status::new(2);
        assert_eq!(status.state(), BrokerState::Connecting { last_error: None });
        status.set(0, ready());
        assert!(matches!(status.state(), BrokerState::Connecting { .. }));
        status.set(1, ready());
        assert_eq!(status.state(), BrokerState::Ready);
        assert!(status.cause().is_none());
        status.set(1, PublisherState::Blocked("low on memory".into()));
        assert_eq!(status.state(), BrokerState::Blocked { reason: "low on memory".into() });
        assert_eq!(status.cause().unwrap().kind(), ErrorKind::Blocked);
        status.set(0, PublisherState::Down(Some(refused())));
        assert_eq!(status.state(), BrokerState::Disconnected { last_error: "refused".into() });
        assert_eq!(status.cause().unwrap().kind(), ErrorKind::Connection);
    }

    #[tokio::test]
    async fn connect_waits_for_all_or_a_final_error() {
        let status = Status::new(2);
        let waiting = tokio::spawn({
            let status = status.clone();
            async move { status.connected().await.map_err(|error| error.kind()) }
        });
        tokio::task::yield_now().await;
        status.set(0, ready());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        status.set(1, ready());
        assert_eq!(waiting.await.unwrap(), Ok(()));
        let status = Status::new(2);
        status.set(1, PublisherState::Down(Some(refused())));
        let waiting = status.connected();
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none(), "it may come up");
        let wrong = AmqpError::new(ErrorKind::Authentication, "wrong password");
        status.set(1, PublisherState::Down(Some(wrong)));
        assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::Authentication);
    }
}
