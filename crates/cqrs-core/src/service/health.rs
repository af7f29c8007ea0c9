//! The health of a service, and its form in a readiness or liveness route.

use std::fmt;
use std::sync::Arc;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::runtime::Monitor;
use super::state::{SubscriptionCounts, SubscriptionState};

/// The health of a service, for readiness and liveness checks. Cheap to clone and to read.
///
/// A route returns the status and the body of a [`HealthReport`], in any HTTP framework:
///
/// ```
/// # use cqrs_core::service::ServiceHealth;
/// /// GET /ready: the status code and a JSON body. `report.to_string()` is the body as text.
/// fn ready(health: &ServiceHealth) -> (u16, String) {
///     let report = health.readiness();
///     (report.status(), report.to_json())
/// }
/// // axum: `(StatusCode::from_u16(report.status())?, Json(report))`
/// ```
///
/// [`App::health`](crate::App::health) is that of several services.
#[derive(Debug, Clone)]
pub struct ServiceHealth(pub(super) Arc<[Arc<Monitor>]>);

/// The health of one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionHealth {
    /// Its name.
    pub name: Arc<str>,
    /// Its state.
    pub state: SubscriptionState,
    /// Its counts.
    pub counts: SubscriptionCounts,
}

/// The answer of a readiness or liveness route: a status code, and the state of every subscription as text
/// (`Display`) or as JSON ([`to_json`](Self::to_json), or `Serialize`).
///
/// The reasons in it are the texts of the logs: they can name hosts, topics and queues, never payloads or
/// credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HealthReport {
    /// Set if the check passes.
    pub ok: bool,
    /// All subscriptions, in the order they were added.
    pub subscriptions: Vec<SubscriptionHealth>,
}

impl ServiceHealth {
    /// `true` if every subscription consumes now. `false` while one starts, has lost its broker, is paused
    /// because of a settlement, drains, or has ended. A subscription that is
    /// [stuck](SubscriptionState::Stuck) with some messages, or has a [full](SubscriptionState::Full)
    /// bound, consumes the others: it is ready.
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(|monitor| monitor.state().is_ready())
    }

    /// `true` if no subscription has failed. A lost broker is no failure: the source reconnects.
    pub fn is_live(&self) -> bool {
        !self.0.iter().any(|monitor| is_failed(&monitor.state()))
    }

    /// The answer of a readiness route: passes as [`is_ready`](Self::is_ready).
    pub fn readiness(&self) -> HealthReport {
        let subscriptions = self.subscriptions();
        HealthReport { ok: subscriptions.iter().all(|one| one.state.is_ready()), subscriptions }
    }

    /// The answer of a liveness route: passes as [`is_live`](Self::is_live).
    pub fn liveness(&self) -> HealthReport {
        let subscriptions = self.subscriptions();
        HealthReport { ok: !subscriptions.iter().any(|one| is_failed(&one.state)), subscriptions }
    }

    /// All subscriptions, in the order they were added.
    pub fn subscriptions(&self) -> Vec<SubscriptionHealth> {
        let health = |monitor: &Arc<Monitor>| SubscriptionHealth {
            name: Arc::clone(&monitor.name),
            state: monitor.state(),
            counts: monitor.counts(),
        };
        self.0.iter().map(health).collect()
    }

    /// That of several services together.
    pub(crate) fn join(services: impl Iterator<Item = Self>) -> Self {
        Self(services.flat_map(|health| health.0.to_vec()).collect())
    }
}

fn is_failed(state: &SubscriptionState) -> bool {
    matches!(state, SubscriptionState::Failed { .. })
}

impl HealthReport {
    /// The HTTP status code: 200 if the check passes, else 503.
    pub fn status(&self) -> u16 {
        if self.ok { 200 } else { 503 }
    }

    /// The report as a JSON object: `ok`, and of every subscription `name`, `state`, `reason` (a text or
    /// null) and `counts`.
    pub fn to_json(&self) -> String {
        // Texts and numbers only, so it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for HealthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.ok { "ok" } else { "not ok" })?;
        for SubscriptionHealth { name, state, .. } in &self.subscriptions {
            write!(f, "\n{name}: {}", state.name())?;
            if let Some(reason) = state.reason() {
                write!(f, ": {reason}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for SubscriptionHealth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("SubscriptionHealth", 4)?;
        object.serialize_field("name", &*self.name)?;
        object.serialize_field("state", self.state.name())?;
        object.serialize_field("reason", &self.state.reason())?;
        object.serialize_field("counts", &self.counts)?;
        object.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: SubscriptionState) -> HealthReport {
        let (name, counts) = ("mailer@users".into(), SubscriptionCounts::default());
        let subscription = SubscriptionHealth { name, state, counts };
        HealthReport { ok: subscription.state.is_ready(), subscriptions: vec![subscription] }
    }

    #[test]
    fn report_has_status_text_and_json() {
        let ready = report(SubscriptionState::Consuming);
        assert_eq!(
            (ready.status(), ready.to_string().as_str()),
            (200, "ok\nmailer@users: consuming")
        );
        let lost = report(SubscriptionState::Disconnected { last_error: "no \"route\"".into() });
        assert_eq!(lost.status(), 503);
        assert_eq!(lost.to_string(), "not ok\nmailer@users: disconnected: no \"route\"");
        let json: serde_json::Value = serde_json::from_str(&lost.to_json()).unwrap();
        assert_eq!(json["ok"], false);
        let one = &json["subscriptions"][0];
        assert_eq!(
            (&one["state"], &one["reason"]),
            (&"disconnected".into(), &"no \"route\"".into())
        );
        assert_eq!(one["counts"]["handled"], 0);
    }
}
