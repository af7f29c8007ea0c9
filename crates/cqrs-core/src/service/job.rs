use std::fmt;
use std::sync::Arc;

use super::Received;
use crate::Timestamp;
use crate::consume::{DeadLetter, DeadLetterReason, Incoming, RetryState, Settle, SourceDelivery};

/// One delivery on its way through the runtime. Dropped, it is given back to the broker.
pub(super) struct Job {
    pub(super) message: Arc<Incoming>,
    pub(super) retry: RetryState,
    /// How often a handler gave it back.
    pub(super) returned: u32,
    pub(super) settle: Box<dyn Settle>,
}

impl Job {
    pub(super) fn new(delivery: SourceDelivery) -> Self {
        let SourceDelivery { message, retry, settle } = delivery;
        Self { message: Arc::new(message), retry, returned: 0, settle }
    }

    pub(super) fn received(&self, group: &Arc<str>) -> Received {
        Received {
            message: Arc::clone(&self.message),
            group: Arc::clone(group),
            retry: self.retry,
            returned: self.returned,
        }
    }

    pub(super) fn letter(
        &self,
        group: &str,
        reason: DeadLetterReason,
        error_type: &str,
        error: &str,
    ) -> DeadLetter {
        let message = &*self.message;
        let mut letter =
            DeadLetter::new(reason, &*message.topic, group).with_error(error_type, error);
        letter.attempts = self.retry.attempts;
        let now = Timestamp::now();
        letter.first_failure = self.retry.first_failure.unwrap_or(now);
        letter.last_failure = self.retry.last_failure.unwrap_or(now);
        letter.partition = message.partition;
        letter.offset = message.offset;
        letter.queue = message.queue.as_deref().map(str::to_owned);
        letter
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("message", &self.message)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
