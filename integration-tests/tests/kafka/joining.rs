//! Tests of groups that refuse a member, permanently or for now.

use std::time::Duration;

use cqrs_core::consume::SourceStatus;
use cqrs_core::{HandlerError, NotificationEvent, Received, Service, Subscription, each};
use cqrs_kafka::{Assignor, KafkaConfig, KafkaMessageBroker, KafkaSubscription};
use cqrs_macros::Notification;
use cqrs_testkit::source::is_consuming;
use integration_tests::consuming::TIMEOUT;
use integration_tests::kafka::{create_topic, fresh_topic};
use integration_tests::{log, servers};
use serde::{Deserialize, Serialize};

use crate::member::{Member, options, request};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "orders")]
struct Ordered {
    number: u32,
}

#[tokio::test]
async fn permanently_refused_join_ends_run_with_reason() {
    log::show_warnings();
    let topic = fresh_topic("session");
    create_topic(&topic, 1, &[]).await;
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap();
    let short = KafkaSubscription::new().with_session_timeout(Duration::from_secs(2));
    let subscription = Subscription::to(&*topic).group("g").json::<Ordered>().option(short);
    let handler =
        each(|_: NotificationEvent<Ordered>, _: Received| async { Ok::<(), HandlerError>(()) });
    let service = Service::builder(broker).subscribe(subscription, handler).build().unwrap();
    let error = service.run_until(tokio::time::sleep(TIMEOUT)).await.unwrap_err();
    let text = format!("{error:?} {error}");
    assert!(text.contains("session_timeout 2s"), "{text}");
    assert!(text.contains("group.min.session.timeout.ms"), "{text}");
}

#[tokio::test]
async fn member_with_other_assignors_reports_the_conflict() {
    let topic = fresh_topic("assignors");
    create_topic(&topic, 1, &[]).await;
    let first = Member::open(request(&topic, "g", options())).await;
    first.wait_for(is_consuming).await;
    let sticky = options().with_assignors([Assignor::CooperativeSticky]);
    let second = Member::open(request(&topic, "g", sticky)).await;
    let has_error =
        |status: &SourceStatus| matches!(status, SourceStatus::Connecting { last_error: Some(_) });
    let status = format!("{:?}", second.wait_for(has_error).await);
    assert!(status.contains("other assignors than cooperative-sticky"), "{status}");
    second.close().await;
    first.close().await;
}
