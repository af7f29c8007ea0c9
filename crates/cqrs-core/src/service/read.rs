use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;

use super::failure::{Failure, FailureClass};
use super::guard::{guarded, limited};
use super::outcome::Verdict;
use super::policy::{DecodeError, OnDecodeError, Undecodable};
use super::received::Received;
use super::repeats::{Logged, log_first};
use super::runner::Runner;
use crate::codec::{DeserializeError, DeserializeErrorKind};
use crate::consume::Incoming;
use crate::dispatch::{caught, panic_message};
use crate::event::AnyEvent;

impl Runner {
    /// The event in a message, or what else becomes of it.
    pub(super) async fn read(&self, received: &Received) -> Result<Box<dyn AnyEvent>, Verdict> {
        let read = guarded(pin!(self.read_by_policy(received))).await;
        read.unwrap_or_else(|failure| Err(Verdict::Failed(failure)))
    }

    /// As [`read`](Self::read), but a panic of what is dropped on the way goes through.
    pub(super) async fn read_by_policy(
        &self,
        received: &Received,
    ) -> Result<Box<dyn AnyEvent>, Verdict> {
        match self.decode(received).await {
            Err(Verdict::Undecodable(case)) => Err(self.by_policy(case, received).await),
            Err(Verdict::Failed(failure)) => {
                self.warn_if_not_now(&failure, received);
                Err(Verdict::Failed(failure))
            }
            read => read,
        }
    }

    fn warn_if_not_now(&self, failure: &Failure, received: &Received) {
        if failure.class == FailureClass::NotTried {
            log_first!(
                self.watched.repeats.is_first(Logged::NotDecodedNow, &failure.error_type),
                warn,
                subscription = %self.watched.name,
                topic = %received.topic,
                partition = received.partition,
                offset = received.offset,
                error = failure.error,
                "a message cannot be decoded now: it waits"
            );
        }
    }

    /// What is to become of a message that is no event.
    async fn by_policy(&self, case: Box<Undecodable>, received: &Received) -> Verdict {
        match self.spec.policies.of(&case) {
            OnDecodeError::DeadLetter => Verdict::Undecodable(case),
            OnDecodeError::Stop => Verdict::Stop(case),
            OnDecodeError::Skip => {
                log_first!(
                    self.watched.repeats.is_first(Logged::Skipped, case.type_name()),
                    info,
                    subscription = %self.watched.name,
                    topic = %received.topic,
                    offset = received.offset,
                    reason = %case,
                    "skipped a message"
                );
                Verdict::Skipped
            }
            OnDecodeError::Handle => match &self.spec.undecodable {
                None => Verdict::Undecodable(case), // `build` refuses that
                Some(function) => match caught(|| function(*case, received.clone())).await {
                    Ok(Ok(())) => Verdict::Handled,
                    Ok(Err(error)) => Verdict::Failed(error.into()),
                    Err(panic) => Verdict::Failed(Failure::panicked(&panic)),
                },
            },
        }
    }

    /// For a batch: the event in a message, or what becomes of it without any function that must wait
    /// for its turn. `None`: it is to be handled alone, when all before it are.
    pub(super) async fn read_for_batch(
        &self,
        received: &Received,
    ) -> Option<Result<Box<dyn AnyEvent>, Verdict>> {
        let read = limited(self.spec.limits.timeout, async {
            match self.decode(received).await {
                Ok(event) => Some(Ok(event)),
                Err(Verdict::Undecodable(case)) => match self.spec.policies.of(&case) {
                    OnDecodeError::DeadLetter | OnDecodeError::Skip => {
                        Some(Err(self.by_policy(case, received).await))
                    }
                    OnDecodeError::Stop | OnDecodeError::Handle => None,
                },
                Err(Verdict::Failed(_)) => None,
                Err(verdict) => Some(Err(verdict)),
            }
        });
        read.await.unwrap_or(None)
    }

    async fn decode(&self, received: &Received) -> Result<Box<dyn AnyEvent>, Verdict> {
        let max_crashes = self.spec.limits.max_crashes;
        if max_crashes > 0 && received.retry.crashes >= max_crashes {
            return Err(Verdict::Crashed);
        }
        let message = &received.message;
        if let Some(text) = &message.unreadable {
            return Err(malformed(message, text));
        }
        self.check_size(message)?;
        if self.spec.decoders.is_empty() {
            return self.decode_plain(message);
        }
        let mut decoded = Incoming::clone(message);
        for decoder in &self.spec.decoders {
            decoded = match caught(|| decoder(decoded)).await {
                Ok(Ok(Some(decoded))) => decoded,
                Ok(Ok(None)) => return Err(Verdict::Skipped),
                Ok(Err(DecodeError::Failed(error))) => return Err(Verdict::Failed(error.into())),
                Ok(Err(DecodeError::NotNow(error))) => {
                    return Err(Verdict::Failed(Failure::not_tried(&error)));
                }
                Ok(Err(DecodeError::Malformed(text))) => return Err(malformed(message, &text)),
                Err(panic) => {
                    return Err(malformed(message, &format!("the decoder panicked: {panic}")));
                }
            };
        }
        self.check_size(&decoded)?;
        self.decode_plain(&decoded)
    }

    fn check_size(&self, message: &Incoming) -> Result<(), Verdict> {
        let max = self.spec.limits.max_body_size;
        match &message.body {
            Some(body) if body.len() > max => {
                let text = format!(
                    "{} bytes, at most {max} are decoded (`max_body_size` of the subscription)",
                    body.len()
                );
                let kind = DeserializeErrorKind::TooLarge;
                let error = DeserializeError::new(kind, text, body.clone());
                Err(undecodable(Undecodable::Malformed(error)))
            }
            _ => Ok(()),
        }
    }

    fn decode_plain(&self, message: &Incoming) -> Result<Box<dyn AnyEvent>, Verdict> {
        if message.body.is_none() {
            return Err(undecodable(Undecodable::Tombstone));
        }
        // Deserializers are code of others.
        match catch_unwind(AssertUnwindSafe(|| self.spec.routes.read(message))) {
            Ok(read) => read.map_err(Verdict::Undecodable),
            Err(panic) => {
                let text = format!("the deserializer panicked: {}", panic_message(panic));
                Err(malformed(message, &text))
            }
        }
    }
}

fn undecodable(case: Undecodable) -> Verdict {
    Verdict::Undecodable(Box::new(case))
}

fn malformed(message: &Incoming, text: &str) -> Verdict {
    let error = DeserializeError::new(DeserializeErrorKind::Syntax, text, message.bytes());
    undecodable(Undecodable::Malformed(error))
}
