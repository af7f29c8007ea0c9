//! Tests of returned messages: their assignment to the messages in flight.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// A written message, as the server sees it.
struct Sent {
    tag: u64,
    message: Message,
    routable: bool,
    receipt: Receipt,
}

fn send(unconfirmed: &mut Unconfirmed, intake: &Intake, message: Message, routable: bool) -> Sent {
    let (pending, receipt) = admit(intake, message.clone());
    unconfirmed.push(pending);
    let tag = unconfirmed.next_tag();
    assert!(unconfirmed.send_next());
    Sent { tag, message, routable, receipt }
}

fn unique(unconfirmed: &mut Unconfirmed, intake: &Intake, routable: bool) -> Sent {
    send(unconfirmed, intake, Message::new("t", ""), routable)
}

#[tokio::test]
async fn return_counts_for_the_message_it_names() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut good = unique(&mut unconfirmed, &intake, true);
    let mut bad = unique(&mut unconfirmed, &intake, false);
    unconfirmed.returned(&returned(&bad.message));
    ack(&mut unconfirmed, good.tag);
    outcome(&mut good.receipt).unwrap().unwrap();
    assert!(outcome(&mut bad.receipt).is_none(), "not before its ack");
    ack(&mut unconfirmed, bad.tag);
    let error = outcome(&mut bad.receipt).unwrap().unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Unroutable);
    assert!(error.detail().contains("312: NO_ROUTE"), "{error}");
}

#[tokio::test]
async fn returns_of_one_multiple_ack_are_told_apart() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut sent: Vec<_> =
        (0..4).map(|number| unique(&mut unconfirmed, &intake, number % 2 == 0)).collect();
    for sent in sent.iter().filter(|sent| !sent.routable) {
        unconfirmed.returned(&returned(&sent.message));
    }
    unconfirmed.answered(4, true, true);
    for sent in &mut sent {
        assert_eq!(outcome(&mut sent.receipt).unwrap().is_ok(), sent.routable);
    }
    assert!(unconfirmed.is_empty());
}

#[tokio::test]
async fn return_of_an_optional_message_is_ignored() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let optional = Message::new("t", "").with_mandatory(false);
    let mut optional = send(&mut unconfirmed, &intake, optional, false);
    unconfirmed.returned(&returned(&optional.message));
    ack(&mut unconfirmed, optional.tag);
    outcome(&mut optional.receipt).unwrap().unwrap();
}

#[tokio::test]
async fn returned_message_is_not_resent_after_a_loss() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut bad = unique(&mut unconfirmed, &intake, false);
    let mut good = unique(&mut unconfirmed, &intake, true);
    unconfirmed.returned(&returned(&bad.message));
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
        unconfirmed.returned(&returned(&first.message));
        ack(&mut unconfirmed, first.tag);
        ack(&mut unconfirmed, other.tag);
        outcome(&mut other.receipt).unwrap().unwrap();
        assert!(outcome(&mut first.receipt).is_none());
        if both {
            unconfirmed.returned(&returned(&second.message));
        }
        ack(&mut unconfirmed, second.tag);
        assert_eq!(kind(&mut first.receipt), Some(expected));
        assert_eq!(kind(&mut second.receipt), Some(expected));
    }
}

#[tokio::test]
async fn ambiguous_message_survives_a_lost_channel() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let id = Uuid::now_v7();
    let same_id = || Message::new("t", "").with_id(id);
    let mut first = send(&mut unconfirmed, &intake, same_id(), false);
    let mut second = send(&mut unconfirmed, &intake, same_id(), true);
    unconfirmed.returned(&returned(&first.message));
    ack(&mut unconfirmed, first.tag);
    unconfirmed.channel_lost(false);
    assert_eq!(write(&mut unconfirmed).len(), 2, "which one was returned is unknown");
    unconfirmed.answered(2, true, true);
    for sent in [&mut first, &mut second] {
        outcome(&mut sent.receipt).unwrap().unwrap();
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
    /// It acknowledges all up to one that it took.
    AckMultiple(usize),
}

/// RabbitMQ, reduced to returns: the return comes before the ack.
#[derive(Default)]
struct Server {
    sent: Vec<Sent>,
    taken: usize,
    unacked: Vec<usize>,
}

impl Server {
    fn take(&mut self, unconfirmed: &mut Unconfirmed) {
        if let Some(next) = self.sent.get(self.taken) {
            if !next.routable && next.message.mandatory {
                unconfirmed.returned(&returned(&next.message));
            }
            self.unacked.push(self.taken);
            self.taken += 1;
        }
    }

    fn ack(&mut self, unconfirmed: &mut Unconfirmed, which: usize) {
        if !self.unacked.is_empty() {
            let index = self.unacked.remove(which % self.unacked.len());
            ack(unconfirmed, self.sent[index].tag);
        }
    }

    fn ack_multiple(&mut self, unconfirmed: &mut Unconfirmed, which: usize) {
        if !self.unacked.is_empty() {
            let last = which % self.unacked.len();
            unconfirmed.answered(self.sent[self.unacked[last]].tag, true, true);
            self.unacked.drain(..=last);
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..40_usize, any::<bool>(), prop::bool::weighted(0.8));
    prop_oneof![
        4 => write.prop_map(|(id, routable, mandatory)| Step::Write { id, routable, mandatory }),
        4 => Just(Step::Take),
        3 => any::<usize>().prop_map(Step::Ack),
        1 => any::<usize>().prop_map(Step::AckMultiple),
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
                Step::Take => server.take(&mut unconfirmed),
                Step::Ack(which) => server.ack(&mut unconfirmed, which),
                Step::AckMultiple(which) => server.ack_multiple(&mut unconfirmed, which),
            }
        }
        while server.taken < server.sent.len() {
            server.take(&mut unconfirmed);
        }
        while !server.unacked.is_empty() {
            server.ack(&mut unconfirmed, 0);
        }
        prop_assert!(unconfirmed.is_empty());
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
