use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cqrs_core::broker::BrokerState;
use tokio::sync::Notify;

use crate::{AmqpError, ErrorKind};

/// How one lane is.
#[derive(Debug, Clone)]
pub(crate) enum LaneState {
    /// No channel yet, or again; why, when it is known.
    Down(Option<AmqpError>),
    Ready,
    Blocked(Arc<str>),
}

/// How all lanes are: what readiness checks see and what an expired message names as its cause.
///
/// Written by the lanes, read by anybody; the lock is held for a copy only.
#[derive(Debug, Clone)]
pub(crate) struct Status(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lanes: Mutex<Lanes>,
    changed: Notify,
}

#[derive(Debug)]
struct Lanes {
    states: Vec<LaneState>,
    /// Whether every lane was ready once.
    ever_ready: bool,
}

impl Status {
    pub(crate) fn new(lanes: usize) -> Self {
        let states = vec![LaneState::Down(None); lanes];
        Self(Arc::new(Shared {
            lanes: Mutex::new(Lanes { states, ever_ready: false }),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn set(&self, lane: usize, state: LaneState) {
        {
            let mut lanes = self.lock();
            if let Some(slot) = lanes.states.get_mut(lane) {
                *slot = state;
            }
            let ready = |state: &LaneState| !matches!(state, LaneState::Down(_));
            lanes.ever_ready |= lanes.states.iter().all(ready);
        }
        self.0.changed.notify_waiters();
    }

    /// Ready only when all lanes are.
    pub(crate) fn state(&self) -> BrokerState {
        let lanes = self.lock();
        let mut blocked = None;
        for state in &lanes.states {
            match state {
                LaneState::Down(error) => {
                    return down(lanes.ever_ready, first_error(&lanes, error));
                }
                LaneState::Blocked(reason) => blocked = Some(Arc::clone(reason)),
                LaneState::Ready => {}
            }
        }
        blocked.map_or(BrokerState::Ready, |reason| BrokerState::Blocked { reason })
    }

    /// Why messages are held up now, if they are.
    pub(crate) fn cause(&self) -> Option<AmqpError> {
        let lanes = self.lock();
        lanes.states.iter().find_map(|state| match state {
            LaneState::Down(error) => error.clone(),
            LaneState::Blocked(reason) => {
                let detail = format!("the server blocks publishers: {reason}");
                Some(AmqpError::new(ErrorKind::Blocked, detail))
            }
            LaneState::Ready => None,
        })
    }

    /// Waits until all lanes had a channel once.
    ///
    /// # Errors
    /// The first failure to get one.
    pub(crate) async fn connected(&self) -> Result<(), AmqpError> {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.lock().ever_ready {
                return Ok(());
            }
            if let Some(error) = self.cause() {
                return Err(error);
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_error(lanes: &Lanes, own: &Option<AmqpError>) -> Option<AmqpError> {
    own.clone().or_else(|| {
        lanes.states.iter().find_map(|state| match state {
            LaneState::Down(error) => error.clone(),
            LaneState::Ready | LaneState::Blocked(_) => None,
        })
    })
}

fn down(ever_ready: bool, error: Option<AmqpError>) -> BrokerState {
    let last_error = error.map(|error| Arc::from(error.chain()));
    match ever_ready {
        false => BrokerState::Connecting { last_error },
        true => BrokerState::Disconnected {
            last_error: last_error.unwrap_or_else(|| Arc::from("a channel is being opened again")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> AmqpError {
        AmqpError::new(ErrorKind::Connect, "refused")
    }

    #[test]
    fn ready_only_when_all_lanes_are() {
        let status = Status::new(2);
        assert_eq!(status.state(), BrokerState::Connecting { last_error: None });
        status.set(0, LaneState::Ready);
        assert!(matches!(status.state(), BrokerState::Connecting { .. }));
        status.set(1, LaneState::Ready);
        assert_eq!(status.state(), BrokerState::Ready);
        assert!(status.cause().is_none());
        status.set(1, LaneState::Blocked("low on memory".into()));
        assert_eq!(status.state(), BrokerState::Blocked { reason: "low on memory".into() });
        assert_eq!(status.cause().unwrap().kind(), ErrorKind::Blocked);
        status.set(0, LaneState::Down(Some(refused())));
        assert_eq!(status.state(), BrokerState::Disconnected { last_error: "refused".into() });
        assert_eq!(status.cause().unwrap().kind(), ErrorKind::Connect);
    }

    #[tokio::test]
    async fn connecting_ends_with_the_last_lane_or_the_first_error() {
        let status = Status::new(2);
        let waiting = tokio::spawn({
            let status = status.clone();
            async move { status.connected().await.map_err(|error| error.kind()) }
        });
        tokio::task::yield_now().await;
        status.set(0, LaneState::Ready);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        status.set(1, LaneState::Ready);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        let status = Status::new(2);
        status.set(1, LaneState::Down(Some(refused())));
        assert_eq!(status.connected().await.unwrap_err().kind(), ErrorKind::Connect);
    }
}
