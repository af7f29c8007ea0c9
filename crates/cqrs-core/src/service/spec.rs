//! The configuration of one subscription, as its workers need it.

use std::sync::Arc;
use std::time::Duration;

use super::policy::{DecoderFn, Policies, UndecodableFn};
use super::routes::Routes;
use super::target::Kind;
use crate::consume::{DEFAULT_MAX_CRASHES, DeadLetterTarget, Retry};
use crate::middleware::DynMiddleware;

/// What a subscription was configured with, as the workers need it.
pub(super) struct Spec {
    pub(super) group: Arc<str>,
    pub(super) routes: Routes,
    pub(super) policies: Policies,
    pub(super) undecodable: Option<UndecodableFn>,
    pub(super) decoders: Vec<DecoderFn>,
    pub(super) middlewares: Vec<Arc<dyn DynMiddleware>>,
    pub(super) handler: Kind,
    pub(super) limits: Limits,
    pub(super) retry: Retry,
    pub(super) dead_letter: DeadLetterTarget,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) concurrency: usize,
    pub(super) max_body_size: usize,
    pub(super) max_crashes: u32,
    pub(super) timeout: Option<Duration>,
}

/// Bytes of a body that is decoded, at most, by default.
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
