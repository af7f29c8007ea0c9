//! Decodes a message: size, decoder hooks, deserializer, and the policy for what is no event.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;

use bytes::Bytes;

use super::context::SubscriptionContext;
use super::failure::{AttemptFailure, FailureClass};
use super::guard::{guarded, limited};
use super::outcome::Verdict;
use super::repeats::{Logged, log_first};
use super::routes::Decoded;
use crate::codec::{DeserializeError, DeserializeErrorKind};
use crate::consume::support::error_chain;
use crate::consume::{Incoming, Received};
use crate::dispatch::{PreparedEvent, caught, panic_message};
use crate::event::EventSlot;
use crate::service::policy::{DecodeError, OnDecodeError, Undecodable};

/// Decodes a message: its event, or the verdict if it has none.
pub(super) async fn read(
    ctx: &SubscriptionContext,
    received: &Received,
) -> Result<Box<dyn EventSlot>, Verdict> {
    let read = async {
        match decode_at_once(ctx, received) {
            Ok(event) => Ok(event),
            Err(undecoded) => read_further(ctx, received, undecoded).await,
        }
    };
    guarded(pin!(read)).await.unwrap_or_else(|failure| Err(Verdict::Failed(failure)))
}

/// The reason why a message is not decoded at once: its verdict, or the subscription's decoders, which may wait.
pub(super) enum Undecoded {
    Verdict(Verdict),
    InSteps,
}

/// Decodes a message of a subscription without decoders. No future, since most messages need none.
pub(super) fn decode_at_once(
    ctx: &SubscriptionContext,
    received: &Received,
) -> Result<Box<dyn EventSlot>, Undecoded> {
    check(ctx, received).map_err(Undecoded::Verdict)?;
    match ctx.spec.decoders.is_empty() {
        true => decode_plain(ctx, received.message()).map_err(Undecoded::Verdict),
        false => Err(Undecoded::InSteps),
    }
}

/// Decodes a message of a subscription without decoders, in the slot of its route. The caller catches a panic of the
/// deserializer: see [`undecoded`].
#[inline]
pub(super) fn decode_prepared(
    ctx: &SubscriptionContext,
    received: &Received,
    prepared: &mut [PreparedEvent],
) -> Result<Decoded, Verdict> {
    check(ctx, received)?;
    decode(ctx, received.message(), prepared)
}

/// The verdict of a message whose deserializer panicked.
#[cold]
pub(super) fn undecoded(message: &Incoming, panic: Box<dyn Any + Send>) -> Verdict {
    malformed(message, &format!("the deserializer panicked: {}", panic_message(panic)))
}

/// Continues after [`decode_at_once`]: runs the decoders, or applies the policy. A panic in user code that is dropped
/// here is not caught.
pub(super) async fn read_further(
    ctx: &SubscriptionContext,
    received: &Received,
    undecoded: Undecoded,
) -> Result<Box<dyn EventSlot>, Verdict> {
    match decode_further(ctx, received, undecoded).await {
        Ok(event) => Ok(event),
        Err(Verdict::Undecodable(case)) => Err(by_policy(ctx, case, received).await),
        Err(verdict) => {
            if let Verdict::Failed(failure) = &verdict {
                warn_if_not_now(ctx, failure, received);
            }
            Err(verdict)
        }
    }
}

fn warn_if_not_now(ctx: &SubscriptionContext, failure: &AttemptFailure, received: &Received) {
    if failure.class == FailureClass::NotTried {
        log_first!(
            ctx.monitor.repeats.is_first(Logged::NotDecodedNow, &failure.error_type),
            warn,
            subscription = %ctx.monitor.name,
            topic = %received.topic,
            partition = received.partition,
            offset = received.offset,
            error = failure.error,
            "a message cannot be decoded now: it waits"
        );
    }
}

/// Applies the policy to a message that cannot be decoded.
pub(super) async fn by_policy(
    ctx: &SubscriptionContext,
    case: Box<Undecodable>,
    received: &Received,
) -> Verdict {
    match ctx.spec.policies.of(&case) {
        OnDecodeError::DeadLetter => Verdict::Undecodable(case),
        OnDecodeError::Stop => Verdict::Stop(case),
        OnDecodeError::Skip => {
            log_first!(
                ctx.monitor.repeats.is_first(Logged::Skipped, case.type_name()),
                info,
                subscription = %ctx.monitor.name,
                topic = %received.topic,
                offset = received.offset,
                reason = %case,
                "skipped a message"
            );
            Verdict::Skipped
        }
        OnDecodeError::Handle => match &ctx.spec.undecodable {
            None => Verdict::Undecodable(case), // `build` refuses that
            Some(function) => match caught(|| function(*case, received.clone())).await {
                Ok(Ok(())) => Verdict::Handled,
                Ok(Err(error)) => Verdict::Failed(error.into()),
                Err(panic) => Verdict::Failed(AttemptFailure::panicked(&panic)),
            },
        },
    }
}

/// Decodes a message of a batch, without the functions that must run in order. `None`: the message must be
/// handled alone, after all before it.
pub(super) async fn read_for_batch(
    ctx: &SubscriptionContext,
    received: &Received,
) -> Option<Result<Box<dyn EventSlot>, Verdict>> {
    let read = limited(ctx.spec.limits.timeout, async {
        let decoded = match decode_at_once(ctx, received) {
            Ok(event) => Ok(event),
            Err(undecoded) => decode_further(ctx, received, undecoded).await,
        };
        match decoded {
            Ok(event) => Some(Ok(event)),
            Err(Verdict::Undecodable(case)) => match ctx.spec.policies.of(&case) {
                OnDecodeError::DeadLetter | OnDecodeError::Skip => {
                    Some(Err(by_policy(ctx, case, received).await))
                }
                OnDecodeError::Stop | OnDecodeError::Handle => None,
            },
            Err(Verdict::Failed(_)) => None,
            Err(verdict) => Some(Err(verdict)),
        }
    });
    read.await.unwrap_or(None)
}

/// Runs the decoders if the message waits for them.
async fn decode_further(
    ctx: &SubscriptionContext,
    received: &Received,
    undecoded: Undecoded,
) -> Result<Box<dyn EventSlot>, Verdict> {
    match undecoded {
        Undecoded::Verdict(verdict) => Err(verdict),
        Undecoded::InSteps => decode_in_steps(ctx, received.message()).await,
    }
}

/// Checks what must hold of a message before its first byte is read.
#[inline]
fn check(ctx: &SubscriptionContext, received: &Received) -> Result<(), Verdict> {
    let max_crashes = ctx.spec.limits.max_crashes;
    if max_crashes > 0 && received.retry().crashes >= max_crashes {
        return Err(Verdict::Crashed);
    }
    let message = received.message();
    match &message.unreadable {
        Some(text) => Err(malformed(message, text)),
        None => check_size(ctx, message),
    }
}

/// Decodes a message by the subscription's decoders and its deserializer.
async fn decode_in_steps(
    ctx: &SubscriptionContext,
    message: &Incoming,
) -> Result<Box<dyn EventSlot>, Verdict> {
    let mut decoded = message.clone();
    for decoder in &ctx.spec.decoders {
        decoded = match caught(|| decoder(decoded)).await {
            Ok(Ok(Some(decoded))) => decoded,
            Ok(Ok(None)) => return Err(Verdict::Skipped),
            Ok(Err(DecodeError::Failed(error))) => return Err(Verdict::Failed(error.into())),
            Ok(Err(DecodeError::NotNow(error))) => {
                let text = error_chain(error.source());
                let failure = AttemptFailure::not_tried(error.type_name(), text);
                return Err(Verdict::Failed(failure));
            }
            Ok(Err(DecodeError::Malformed(text))) => return Err(malformed(message, &text)),
            Err(panic) => {
                return Err(malformed(message, &format!("the decoder panicked: {panic}")));
            }
        };
    }
    check_size(ctx, &decoded)?;
    decode_plain(ctx, &decoded)
}

#[inline]
fn check_size(ctx: &SubscriptionContext, message: &Incoming) -> Result<(), Verdict> {
    let max = ctx.spec.limits.max_body_size;
    match &message.body {
        Some(body) if body.len() > max => Err(too_large(body, max)),
        _ => Ok(()),
    }
}

#[cold]
fn too_large(body: &Bytes, max: usize) -> Verdict {
    let size = body.len();
    let text =
        format!("{size} bytes, at most {max} are decoded (`max_body_size` of the subscription)");
    let error = DeserializeError::new(DeserializeErrorKind::TooLarge, text, body.clone());
    undecodable(Undecodable::Malformed(error))
}

fn decode_plain(
    ctx: &SubscriptionContext,
    message: &Incoming,
) -> Result<Box<dyn EventSlot>, Verdict> {
    // Deserializers are user code.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(ctx, message, &mut [])));
    let decoded = decoded.unwrap_or_else(|panic| Err(undecoded(message, panic)));
    decoded.map(|decoded| decoded.event)
}

/// Decodes a message in the slot of its route, if there are slots.
#[inline]
fn decode(
    ctx: &SubscriptionContext,
    message: &Incoming,
    prepared: &mut [PreparedEvent],
) -> Result<Decoded, Verdict> {
    if message.body.is_none() {
        return Err(undecodable(Undecodable::Tombstone));
    }
    ctx.spec.routes.read(message, prepared).map_err(Verdict::Undecodable)
}

#[cold]
fn undecodable(case: Undecodable) -> Verdict {
    Verdict::Undecodable(Box::new(case))
}

#[cold]
fn malformed(message: &Incoming, text: &str) -> Verdict {
    let error = DeserializeError::new(DeserializeErrorKind::Syntax, text, message.bytes());
    undecodable(Undecodable::Malformed(error))
}
