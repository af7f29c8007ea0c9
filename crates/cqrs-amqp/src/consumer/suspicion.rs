use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::incoming::Original;
use super::options::QueueKind;
use super::plan::Plan;
use crate::Argument;

/// Before RabbitMQ 4.3 the count has everything in it that ever came back: also what was dropped, and
/// what was sent ahead when a consumer left in good order. So many are forgiven.
const FORGIVEN: u32 = 10;

/// Who may have killed a process: what a source makes of the counts in its deliveries.
///
/// A quorum queue counts how often a message came back from a consumer that went away without settling
/// it (`x-delivery-count`; since 4.3 without those given back with a nack). A lost connection counts
/// like a killed process, but the source knows of its own.
#[derive(Debug)]
pub(super) struct Suspicion {
    /// Whether only one message is out at any time.
    alone: bool,
    /// Whether messages that came back can be taken one by one.
    careful: AtomicBool,
    losses: AtomicU32,
}

/// What a delivery's count says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) crashes: u32,
    pub(super) suspect: Suspect,
}

/// How careful to be with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspect {
    No,
    /// While messages are taken one by one.
    IfCareful,
    /// At any time.
    Always,
}

impl Suspicion {
    pub(super) fn new(plan: &Plan) -> Self {
        let quorum = plan.queues.iter().all(|queue| queue.kind == QueueKind::Quorum);
        let single = plan.queues.iter().any(|queue| {
            let argument = queue.config.arguments.get("x-single-active-consumer");
            argument == Some(&Argument::Flag(true))
        });
        let alone = quorum && plan.max_unsettled == 1 && plan.queues.len() == 1;
        Self {
            alone,
            careful: AtomicBool::new(quorum && !alone && !single),
            losses: AtomicU32::new(0),
        }
    }

    /// Whether a line begins with taking messages one by one.
    pub(super) fn is_careful(&self) -> bool {
        self.careful.load(Ordering::Relaxed)
    }

    /// The server does not hand out single messages (a single active consumer that was declared
    /// elsewhere). True when that is news.
    pub(super) fn give_up(&self) -> bool {
        self.careful.swap(false, Ordering::Relaxed)
    }

    /// A line was lost, and all that was out came back.
    pub(super) fn lost(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn judge(&self, original: &Original) -> Judgement {
        let count = |name| original.number(name).and_then(|count| u32::try_from(count).ok());
        let returned = count("x-delivery-count").unwrap_or(0);
        // Where all that was sent ahead is counted along, nobody can be accused.
        if returned == 0 || !(self.alone || self.is_careful()) {
            return Judgement { crashes: 0, suspect: Suspect::No };
        }
        let exact = count("x-acquired-count").is_some();
        let foreign = returned.saturating_sub(self.losses.load(Ordering::Relaxed));
        let suspect = match foreign > 0 {
            true if exact => Suspect::Always,
            true => Suspect::IfCareful,
            false => Suspect::No,
        };
        let crashes = if exact { foreign } else { foreign.saturating_sub(FORGIVEN) };
        Judgement { crashes, suspect }
    }
}

#[cfg(test)]
mod tests {
    use cqrs_core::consume::{StatusReporter, SubscribeRequest, TopicSet};
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;
    use crate::{AmqpConfig, AmqpSubscription};

    fn suspicion(change: impl FnOnce(&mut SubscribeRequest)) -> Suspicion {
        let topics = TopicSet::Named(vec!["t".into()]);
        let mut request = SubscribeRequest::new(topics, "g", StatusReporter::new().0);
        change(&mut request);
        Suspicion::new(&Plan::new(&request, &AmqpConfig::default()).unwrap())
    }

    fn judged(suspicion: &Suspicion, counts: &[(&str, i64)]) -> (u32, Suspect) {
        let mut headers = FieldTable::default();
        for (name, count) in counts {
            headers.insert((*name).into(), AMQPValue::LongLongInt(*count));
        }
        let properties = BasicProperties::default().with_headers(headers);
        let original = Original { properties, ..Original::default() };
        let Judgement { crashes, suspect } = suspicion.judge(&original);
        (crashes, suspect)
    }

    const NEW: (&str, i64) = ("x-acquired-count", 9);

    fn returned(count: i64) -> (&'static str, i64) {
        ("x-delivery-count", count)
    }

    #[test]
    fn what_came_back_from_others_is_suspect() {
        let suspicion = suspicion(|_| {});
        assert_eq!(judged(&suspicion, &[]), (0, Suspect::No));
        assert_eq!(judged(&suspicion, &[NEW]), (0, Suspect::No));
        assert_eq!(judged(&suspicion, &[NEW, returned(2)]), (2, Suspect::Always));
        // The server of old counts everything.
        assert_eq!(judged(&suspicion, &[returned(2)]), (0, Suspect::IfCareful));
        assert_eq!(judged(&suspicion, &[returned(13)]), (3, Suspect::IfCareful));
    }

    #[test]
    fn lost_connections_of_our_own_are_no_crashes() {
        let suspicion = suspicion(|_| {});
        suspicion.lost();
        suspicion.lost();
        assert_eq!(judged(&suspicion, &[NEW, returned(2)]), (0, Suspect::No));
        assert_eq!(judged(&suspicion, &[NEW, returned(3)]), (1, Suspect::Always));
    }

    #[test]
    fn nobody_is_accused_where_innocents_are_counted_along() {
        let single = |request: &mut SubscribeRequest| {
            request.options.insert(AmqpSubscription::new().with_single_active_consumer());
        };
        let counts = [NEW, returned(5)];
        assert_eq!(judged(&suspicion(single), &counts), (0, Suspect::No));
        let one = suspicion(|request| {
            single(request);
            request.max_unsettled = Some(1);
        });
        assert_eq!((judged(&one, &counts).0, one.is_careful()), (5, false));
        let elsewhere = suspicion(|_| {});
        assert!(elsewhere.give_up() && !elsewhere.give_up());
        assert_eq!(judged(&elsewhere, &counts), (0, Suspect::No));
    }
}
