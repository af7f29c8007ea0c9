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

fn send(ledger: &mut Ledger, intake: &Intake, message: Message, routable: bool) -> Sent {
    let (pending, receipt) = admit(intake, message.clone());
    ledger.push(pending);
    let number = ledger.write_next().unwrap();
    Sent { number, message, routable, receipt }
}

fn unique(ledger: &mut Ledger, intake: &Intake, routable: bool) -> Sent {
    send(ledger, intake, Message::new("t", ""), routable)
}

#[tokio::test]
async fn a_return_attached_to_a_neighbour_finds_its_message() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut good = unique(&mut ledger, &intake, true);
    let mut bad = unique(&mut ledger, &intake, false);
    // One multiple ack, walked in the wrong order.
    ledger.answered(good.number, true, Some(returned(&bad.message)));
    ledger.answered(bad.number, true, None);
    ledger.cut();
    verdict(&mut good.receipt).unwrap().unwrap();
    let error = verdict(&mut bad.receipt).unwrap().unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Unroutable);
    assert!(error.detail().contains("312: NO_ROUTE"), "{error}");
}

#[tokio::test]
async fn an_ack_with_anothers_return_waits_for_the_other() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut late = unique(&mut ledger, &intake, false);
    let mut early = unique(&mut ledger, &intake, false);
    // The returns of both came in, then the ack of `early` alone: it carries the return of `late`.
    ledger.answered(early.number, true, Some(returned(&late.message)));
    ledger.cut();
    assert!(verdict(&mut early.receipt).is_none(), "its own return may still come");
    ledger.answered(late.number, true, Some(returned(&early.message)));
    ledger.cut();
    for sent in [&mut early, &mut late] {
        assert_eq!(kind(&mut sent.receipt), Some(PublishErrorKind::Unroutable));
    }
}

#[tokio::test]
async fn a_message_that_cannot_come_back_does_not_wait() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let late = unique(&mut ledger, &intake, false);
    let optional = Message::new("t", "").with_mandatory(false);
    let mut optional = send(&mut ledger, &intake, optional, false);
    ledger.answered(optional.number, true, Some(returned(&late.message)));
    ledger.cut();
    verdict(&mut optional.receipt).unwrap().unwrap();
}

#[tokio::test]
async fn what_was_returned_before_a_loss_is_not_sent_again() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut bad = unique(&mut ledger, &intake, false);
    let mut good = unique(&mut ledger, &intake, true);
    ledger.answered(good.number, true, Some(returned(&bad.message)));
    ledger.lost();
    assert_eq!(kind(&mut bad.receipt), Some(PublishErrorKind::Unroutable));
    assert!(verdict(&mut good.receipt).is_none(), "not certain: it is sent again");
    assert_eq!(ledger.next().unwrap().id, good.message.id);
}

#[tokio::test]
async fn twins_that_all_came_back_are_unroutable_and_half_is_unknown() {
    for (both, expected) in
        [(true, PublishErrorKind::Unroutable), (false, PublishErrorKind::Unknown)]
    {
        let (intake, mut ledger) = (intake(), Ledger::new());
        let id = Uuid::now_v7();
        let twin = || Message::new("t", "").with_id(id);
        let mut first = send(&mut ledger, &intake, twin(), false);
        let mut second = send(&mut ledger, &intake, twin(), false);
        let mut elsewhere = Message::new("other", "").with_id(id);
        elsewhere.mandatory = true;
        let mut other = send(&mut ledger, &intake, elsewhere, true);
        ledger.answered(first.number, true, Some(returned(&first.message)));
        ledger.answered(other.number, true, None);
        ledger.cut();
        verdict(&mut other.receipt).unwrap().unwrap();
        assert!(verdict(&mut first.receipt).is_none());
        ledger.answered(second.number, true, both.then(|| returned(&second.message)));
        ledger.cut();
        assert_eq!(kind(&mut first.receipt), Some(expected));
        assert_eq!(kind(&mut second.receipt), Some(expected));
    }
}

/// What happens next, drawn at random.
#[derive(Debug, Clone)]
enum Step {
    /// A message of this id is written.
    Write { id: usize, routable: bool, mandatory: bool },
    /// The server takes the next message; one it cannot route goes back.
    Take,
    /// It acknowledges one message it took.
    Ack(usize),
    /// It acknowledges all it took; lapin walks them in an order of its own.
    AckAll(usize),
    /// The lane sees the answers so far, in an order of its own.
    Drain(usize),
}

/// RabbitMQ and lapin as far as returns go: the return comes before the ack, and every ack takes the
/// oldest return along.
#[derive(Default)]
struct Server {
    sent: Vec<Sent>,
    taken: usize,
    unacked: Vec<usize>,
    returns: VecDeque<usize>,
    /// Resolved by lapin, not seen by the lane.
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

    fn drain(&mut self, ledger: &mut Ledger, turn: usize) {
        let count = self.resolved.len().max(1);
        self.resolved.rotate_left(turn % count);
        if turn.is_multiple_of(2) {
            self.resolved.reverse();
        }
        for (number, returned) in self.resolved.drain(..) {
            ledger.answered(number, true, returned);
        }
        ledger.cut();
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
    fn no_verdict_is_ever_wrong(steps in prop::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let (intake, mut ledger, mut server) = (intake(), Ledger::new(), Server::default());
        let ids: Vec<_> = (0..40).map(|_| Uuid::now_v7()).collect();
        for step in steps {
            match step {
                Step::Write { id, routable, mandatory } => {
                    let message =
                        Message::new("t", "").with_id(ids[id]).with_mandatory(mandatory);
                    let sent = send(&mut ledger, &intake, message, routable);
                    server.sent.push(sent);
                }
                Step::Take => server.take(),
                Step::Ack(which) => server.ack(which),
                Step::AckAll(turn) => {
                    for step in 0..server.unacked.len() {
                        server.ack(turn.wrapping_add(step * 7));
                    }
                }
                Step::Drain(turn) => server.drain(&mut ledger, turn),
            }
        }
        while server.taken < server.sent.len() {
            server.take();
        }
        while !server.unacked.is_empty() {
            server.ack(0);
        }
        server.drain(&mut ledger, 1);
        prop_assert!(server.returns.is_empty() && ledger.is_empty());
        prop_assert_eq!(intake.in_flight(), 0);
        let count = |id| server.sent.iter().filter(|sent| sent.message.id == id).count();
        let twins: Vec<_> = server.sent.iter().map(|sent| count(sent.message.id) > 1).collect();
        for (sent, twin) in server.sent.iter_mut().zip(twins) {
            let comes_back = !sent.routable && sent.message.mandatory;
            match verdict(&mut sent.receipt) {
                Some(Ok(_)) => prop_assert!(!comes_back, "a false Ok"),
                Some(Err(error)) if error.kind() == PublishErrorKind::Unroutable => {
                    prop_assert!(comes_back, "a false Unroutable");
                }
                Some(Err(error)) => {
                    prop_assert!(twin && error.kind() == PublishErrorKind::Unknown, "{}", error);
                }
                None => prop_assert!(false, "no verdict"),
            }
        }
    }
}
