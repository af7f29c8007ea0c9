use super::*;

fn open(until: i64, step: i64, rest: i64, alone: Option<i64>) -> Open {
    Open { until, step, rest, waits: 0, alone }
}

/// After a death at `position` with this note.
fn found(position: i64, open: Open) -> Watch {
    Watch::new(Some(position), noted(open), |_| false)
}

fn noted(open: Open) -> Noted {
    Noted { open: Some(open), crashes: BTreeMap::new() }
}

fn commit(watch: &mut Watch, position: i64, version: u64) -> Option<Open> {
    let note = watch.note(position);
    watch.committed(watch.asked(), &note, version);
    note.open
}

#[test]
fn nothing_is_granted_before_the_commit() {
    let mut watch = Watch::default();
    assert_eq!(watch.granted(), i64::MIN);
    assert_eq!(watch.ask(10, true, 1), 10 + MANY);
    assert!(watch.is_asking() && watch.granted() == i64::MIN);
    let note = commit(&mut watch, 10, 1);
    assert_eq!(note, Some(open(10 + MANY, MANY, 10 + MANY, None)));
    assert!(!watch.is_asking() && watch.granted() == 10 + MANY);
    // A draft from before the next question.
    let asked = watch.asked();
    watch.ask(10 + MANY, true, 2);
    watch.committed(asked, &noted(note.unwrap()), 1);
    assert!(watch.is_asking() && watch.granted() == 10 + MANY);
}

#[test]
fn suspects_run_in_few_then_alone() {
    let all = 10 + MANY;
    let mut watch = found(10, open(all, MANY, all, None));
    assert!(watch.is_careful() && watch.granted() == i64::MIN, "what was found grants nothing");
    commit(&mut watch, 10, 0);
    assert_eq!(watch.granted(), i64::MIN);
    watch.ask(10, true, 1);
    let note = commit(&mut watch, 10, 1).unwrap();
    assert_eq!((watch.granted(), &note), (10 + FEW, &open(10 + FEW, FEW, all, None)));
    let mut watch = found(10, note);
    watch.ask(10, true, 1);
    let note = commit(&mut watch, 10, 1).unwrap();
    assert_eq!((watch.granted(), &note), (11, &open(10 + FEW, 1, all, Some(10))));
    watch.finish(10);
    watch.ask(10 + FEW, true, 2);
    let more = commit(&mut watch, 10 + FEW, 2).unwrap();
    assert_eq!(more, open(10 + 2 * FEW, FEW, all, None), "the others go on in few");
    let watch = found(10, note);
    assert_eq!((watch.crashes(10), watch.crashes(11)), (1, 0));
    assert!(watch.is_named(), "it is to be committed");
}

#[test]
fn normal_grants_come_behind_the_suspects() {
    let mut watch = found(10, open(15, FEW, 20, None));
    assert_eq!(watch.ask(25, true, 1), 25 + MANY, "over a gap");
    assert!(!watch.is_careful());
}

#[test]
fn whose_handling_ended_is_not_accused() {
    for ended in [Watch::finish, Watch::hold] {
        let mut watch = found(10, open(12, 1, 12, Some(10)));
        watch.ask(10, true, 1);
        assert_eq!(commit(&mut watch, 10, 1), Some(open(12, 1, 12, Some(10))));
        ended(&mut watch, 10);
        assert!(!watch.has_crashes() && watch.is_named());
        assert_eq!(commit(&mut watch, 10, 2), Some(open(12, 1, 12, None)));
        assert!(!watch.is_named());
    }
    let mut watch = found(10, open(12, 1, 12, Some(10)));
    watch.ask(10, true, 1);
    watch.rest(10);
    assert_eq!(watch.crashes(10), 1, "that counts on when it was cut off");
    assert_eq!(commit(&mut watch, 10, 1), Some(open(12, 1, 12, None)));
}

#[test]
fn a_finished_one_that_is_found_named_is_innocent() {
    let open = open(12, 1, 12, Some(11));
    let done = Watch::new(Some(10), noted(open.clone()), |at| at == 11);
    assert!(!done.has_crashes());
    assert!(!found(12, open).is_careful(), "all of it is finished");
}

#[test]
fn a_clean_close_accuses_nobody_and_keeps_who_was_not_reached() {
    let mut watch = Watch::default();
    watch.ask(10, true, 1);
    assert!(watch.close());
    assert_eq!(watch.note(10).open, None);
    assert!(!Watch::default().close(), "nothing to say");
    let before = open(20, MANY, 20, None);
    let mut watch = found(10, before.clone());
    assert!(!watch.close(), "as it was found");
    watch.ask(10, true, 1);
    assert!(watch.close());
    assert_eq!(watch.note(15).open, Some(before));
    assert_eq!(watch.note(20).open, None, "behind the suspects");
}

#[test]
fn a_lost_membership_is_no_death() {
    let mut watch = found(10, open(20, 1, 30, None));
    watch.ask(10, true, 1);
    let named = commit(&mut watch, 10, 1).unwrap();
    // A commit that did not arrive.
    watch.ask(11, true, 2);
    watch.close();
    let former = watch.former();
    let again = former.clone().acquit(noted(named.clone()));
    assert_eq!(again, noted(open(20, 1, 30, None)));
    // Somebody else had it meanwhile.
    for other in [open(20, 1, 30, Some(12)), open(40, FEW, 40, None)] {
        assert_eq!(former.clone().acquit(noted(other.clone())), noted(other));
    }
    let accused = Noted { crashes: BTreeMap::from([(10, 1)]), ..noted(named) };
    assert_eq!(former.acquit(accused.clone()), accused);
}

#[test]
fn nobody_is_named_who_may_wait_behind_a_held_one() {
    let mut watch = found(10, open(20, 1, 20, None));
    watch.ask(10, true, 1);
    watch.begin(10);
    watch.hold(10);
    watch.ask(11, true, 2);
    assert_eq!(watch.note(10).open.unwrap().alone, None);
    watch.finish(10);
    watch.ask(12, true, 3);
    assert_eq!(watch.note(11).open.unwrap().alone, Some(12));
}

#[test]
fn who_outlasts_the_patience_is_not_accused_and_the_next_one_is_more_patient() {
    let mut watch = found(10, open(20, 1, 20, None));
    watch.ask(10, true, 1);
    watch.begin(10);
    let before = watch.patience();
    watch.outlast([10].into_iter());
    assert!(watch.has_strays() && watch.rested() == 1);
    let note = commit(&mut watch, 10, 2).unwrap();
    assert_eq!((note.alone, note.waits), (None, 1));
    assert_eq!(watch.ask(11, true, 3), 12);
    assert_eq!(watch.note(10).open.unwrap().alone, None, "10 may be the killer");
    assert_eq!(found(10, note).patience(), 2 * before);
    watch.finish(10);
    watch.ask(12, true, 4);
    assert_eq!(watch.note(11).open.unwrap().alone, Some(12));
    // One that did not start is no killer; it may be once it starts.
    watch.outlast([12].into_iter());
    assert!(!watch.has_strays());
    watch.begin(12);
    assert!(watch.has_strays());
    watch.finish(12);
    assert!(!watch.has_strays());
    let patient = found(1, Open { waits: u32::MAX, ..open(9, 1, 9, None) });
    assert_eq!(patient.patience(), Duration::from_secs(16 * 60));
}
