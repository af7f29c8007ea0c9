//! The configuration of one subscription, as its workers need it.

use std::sync::Arc;
use std::time::Duration;

use super::handler::HandlerKind;
use super::routes::Routes;
use crate::consume::{DEFAULT_MAX_CRASHES, DeadLetterTarget, Retry};
use crate::middleware::DynMiddleware;
use crate::scope::ErasedInbox;
use crate::service::policy::{DecoderFn, Policies, UndecodableFn};

/// The configuration of a subscription.
pub(crate) struct Spec {
    pub(crate) group: Arc<str>,
    pub(crate) routes: Routes,
    pub(crate) policies: Policies,
    pub(crate) undecodable: Option<UndecodableFn>,
    pub(crate) decoders: Vec<DecoderFn>,
    pub(crate) middlewares: Vec<Arc<dyn DynMiddleware>>,
    pub(crate) handler: HandlerKind,
    pub(crate) inbox: Option<Arc<dyn ErasedInbox>>,
    pub(crate) limits: Limits,
    pub(crate) retry: Retry,
    pub(crate) dead_letter: DeadLetterTarget,
    /// The number of held messages from which on no message is held for the events of its handler.
    pub(crate) most_held: usize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) concurrency: usize,
    pub(crate) max_body_size: usize,
    pub(crate) max_crashes: u32,
    pub(crate) timeout: Option<Duration>,
}

/// The default of [`Limits::max_body_size`], in bytes.
const MAX_BODY_SIZE: usize = 8 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: 1,
            max_body_size: MAX_BODY_SIZE,
            max_crashes: DEFAULT_MAX_CRASHES,
            timeout: None,
        }
    }
}
