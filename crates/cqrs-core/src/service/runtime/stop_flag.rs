//! The flag of a cancelled token, read by a subscription's workers for each job.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use tokio_util::sync::CancellationToken;

/// A flag that is set once a token is cancelled: before `cancel` returns, in any thread.
pub(super) struct StopFlag {
    flag: Arc<SetOnWake>,
    /// Keeps the flag registered with the token.
    _cancelled: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

#[derive(Default)]
struct SetOnWake(AtomicBool);

impl Wake for SetOnWake {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl StopFlag {
    pub(super) fn of(token: &CancellationToken) -> Self {
        let flag = Arc::new(SetOnWake::default());
        let mut cancelled = Box::pin(token.clone().cancelled_owned());
        let waker = Waker::from(Arc::clone(&flag));
        if cancelled.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            flag.0.store(true, Ordering::Release);
        }
        Self { flag, _cancelled: cancelled }
    }

    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.flag.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_is_set_when_cancel_returns() {
        let token = CancellationToken::new();
        let (own, child) = (StopFlag::of(&token), StopFlag::of(&token.child_token()));
        assert!(!own.is_set() && !child.is_set());
        token.cancel();
        assert!(own.is_set() && child.is_set());
        assert!(StopFlag::of(&token).is_set(), "cancelled before");
    }
}
