//! Tests of returned messages: their assignment to the messages in flight.

use std::collections::VecDeque;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// A written message, as the server sees it.
struct Sent {
    number: u64,
    message: Message,
    routable: bool,
    receipt: Receipt,
}

fn send(unconfirmed: &mut Unconfirmed, intake: &Intake, message: Message, routable: bool) -> Sent {
    let (pending, receipt) = admit(intake, message.clone());
    unconfirmed.push(pending);
    let number = unconfirmed.send_next().unwrap().0;
    Sent { number, message, routable, receipt }
}

fn unique(unconfirmed: &mut Unconfirmed, intake: &Intake, routable: bool) -> Sent {
    send(unconfirmed, intake, Message::new("t", ""), routable)
}

#[tokio::test]
async fn return_on_another_confirm_finds_its_message() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut good = unique(&mut unconfirmed, &intake, true);
    let mut bad = unique(&mut unconfirmed, &intake, false);
    // One multiple ack, resolved out of order.
    unconfirmed.answered(good.number, true, Some(returned(&bad.message)));
    unconfirmed.answered(bad.number, true, None);
    unconfirmed.settle();
    outcome(&mut good.receipt).unwrap().unwrap();
    let error = outcome(&mut bad.receipt).unwrap().unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Unroutable);
    assert!(error.detail().contains("312: NO_ROUTE"), "{error}");
}

#[tokio::test]
async fn ack_with_another_return_is_held_back() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut late = unique(&mut unconfirmed, &intake, false);
    let mut early = unique(&mut unconfirmed, &intake, false);
    // The returns of both came in, then the ack of `early` alone: it carries the return of `late`.
    unconfirmed.answered(early.number, true, Some(returned(&late.message)));
    unconfirmed.settle();
    assert!(outcome(&mut early.receipt).is_none(), "its own return may still come");
    unconfirmed.answered(late.number, true, Some(returned(&early.message)));
    unconfirmed.settle();
    for sent in [&mut early, &mut late] {
        assert_eq!(kind(&mut sent.receipt), Some(PublishErrorKind::Unroutable));
    }
}

#[tokio::test]
async fn ack_of_optional_message_is_not_held_back() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let late = unique(&mut unconfirmed, &intake, false);
    let optional = Message::new("t", "").with_mandatory(false);
    let mut optional = send(&mut unconfirmed, &intake, optional, false);
    unconfirmed.answered(optional.number, true, Some(returned(&late.message)));
    unconfirmed.settle();
    outcome(&mut optional.receipt).unwrap().unwrap();
}

#[tokio::test]
async fn returned_message_is_not_resent_after_a_loss() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut bad = unique(&mut unconfirmed, &intake, false);
    let mut good = unique(&mut unconfirmed, &intake, true);
    unconfirmed.answered(good.number, true, Some(returned(&bad.message)));
    unconfirmed.channel_lost(false);
    assert_eq!(kind(&mut bad.receipt), Some(PublishErrorKind::Unroutable));
    assert!(outcome(&mut good.receipt).is_none(), "not certain: it is sent again");
    assert_eq!(unconfirmed.next().unwrap().id, good.message.id);
}

#[tokio::test]
async fn same_id_and_topic_partly_returned_is_unknown() {
    for (both, expected) in
        [(true, PublishErrorKind::Unroutable), (false, PublishErrorKind::Unknown)]
    {
        let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
        let id = Uuid::now_v7();
        let same_id = || Message::new("t", "").with_id(id);
        let mut first = send(&mut unconfirmed, &intake, same_id(), false);
        let mut second = send(&mut unconfirmed, &intake, same_id(), false);
        let mut elsewhere = Message::new("other", "").with_id(id);
        elsewhere.mandatory = true;
        let mut other = send(&mut unconfirmed, &intake, elsewhere, true);
        unconfirmed.answered(first.number, true, Some(returned(&first.message)));
        unconfirmed.answered(other.number, true, None);
        unconfirmed.settle();
        outcome(&mut other.receipt).unwrap().unwrap();
        assert!(outcome(&mut first.receipt).is_none());
        unconfirmed.answered(second.number, true, both.then(|| returned(&second.message)));
        unconfirmed.settle();
        assert_eq!(kind(&mut first.receipt), Some(expected));
        assert_eq!(kind(&mut second.receipt), Some(expected));
    }
}

/// One random step.
#[derive(Debug, Clone)]
enum Step {
    /// A message of this id is written.
    Write { id: usize, routable: bool, mandatory: bool },
    /// The server takes the next message; an unroutable one is returned.
    Take,
    /// It acknowledges one message it took.
    Ack(usize),
    /// It acknowledges all it took; lapin resolves them in any order.
    AckAll(usize),
    /// The publisher sees the answers so far, in any order.
    Drain(usize),
}

/// RabbitMQ and lapin, reduced to returns: the return comes before the ack, and every ack carries the
/// oldest return.
#[derive(Default)]
struct Server {
    sent: Vec<Sent>,
    taken: usize,
    unacked: Vec<usize>,
    returns: VecDeque<usize>,
    /// Resolved by lapin, not seen by the publisher.
    resolved: Vec<(u64, Option<Returned>)>,
}

impl Server {
    fn take(&mut self) {
        if let Some(next) = self.sent.get(self.taken) {
            if !next.routable && next.message.mandatory {
                self.returns.push_back(self.taken);
            }
            self.unacked.push(self.taken);
            self.taken += 1;
        }
    }

    fn ack(&mut self, which: usize) {
        if !self.unacked.is_empty() {
            let index = self.unacked.remove(which % self.unacked.len());
            let carried = self.returns.pop_front();
            let carried = carried.map(|owner| returned(&self.sent[owner].message));
            self.resolved.push((self.sent[index].number, carried));
        }
    }

    fn drain(&mut self, unconfirmed: &mut Unconfirmed, turn: usize) {
        let count = self.resolved.len().max(1);
        self.resolved.rotate_left(turn % count);
        if turn.is_multiple_of(2) {
            self.resolved.reverse();
        }
        for (number, returned) in self.resolved.drain(..) {
            unconfirmed.answered(number, true, returned);
        }
        unconfirmed.settle();
    }
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..40_usize, any::<bool>(), prop::bool::weighted(0.8));
    prop_oneof![
        4 => write.prop_map(|(id, routable, mandatory)| Step::Write { id, routable, mandatory }),
        4 => Just(Step::Take),
        3 => any::<usize>().prop_map(Step::Ack),
        1 => any::<usize>().prop_map(Step::AckAll),
        2 => any::<usize>().prop_map(Step::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_outcome_is_right(steps in prop::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let (intake, mut unconfirmed, mut server) = (intake(), Unconfirmed::default(), Server::default());
        let ids: Vec<_> = (0..40).map(|_| Uuid::now_v7()).collect();
        for step in steps {
            match step {
                Step::Write { id, routable, mandatory } => {
                    let message =
                        Message::new("t", "").with_id(ids[id]).with_mandatory(mandatory);
                    let sent = send(&mut unconfirmed, &intake, message, routable);
                    server.sent.push(sent);
                }
                Step::Take => server.take(),
                Step::Ack(which) => server.ack(which),
                Step::AckAll(turn) => {
                    for step in 0..server.unacked.len() {
                        server.ack(turn.wrapping_add(step * 7));
                    }
                }
                Step::Drain(turn) => server.drain(&mut unconfirmed, turn),
            }
        }
        while server.taken < server.sent.len() {
            server.take();
        }
        while !server.unacked.is_empty() {
            server.ack(0);
        }
        server.drain(&mut unconfirmed, 1);
        prop_assert!(server.returns.is_empty() && unconfirmed.is_empty());
        prop_assert_eq!(intake.in_flight(), 0);
        let count = |id| server.sent.iter().filter(|sent| sent.message.id == id).count();
        let same_id: Vec<_> = server.sent.iter().map(|sent| count(sent.message.id) > 1).collect();
        for (sent, same_id) in server.sent.iter_mut().zip(same_id) {
            let is_returned = !sent.routable && sent.message.mandatory;
            match outcome(&mut sent.receipt) {
                Some(Ok(_)) => prop_assert!(!is_returned, "a false Ok"),
                Some(Err(error)) if error.kind() == PublishErrorKind::Unroutable => {
                    prop_assert!(is_returned, "a false Unroutable");
                }
                Some(Err(error)) => {
                    prop_assert!(same_id && error.kind() == PublishErrorKind::Unknown, "{}", error);
                }
                None => prop_assert!(false, "no outcome"),
            }
        }
    }
}
