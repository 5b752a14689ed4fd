use super::*;
use patina_proto::v1::CloneOutcome;
use std::{
    future::pending,
    sync::atomic::{AtomicU32, Ordering},
};
use tokio::sync::oneshot;
use tonic::Code;

fn key(request: &str) -> Key {
    (Uuid::from_u128(1), 0, request.to_owned())
}

/// A call that makes a clone of its own each time.
async fn call(made: Arc<AtomicU32>) -> Result<CloneVmResponse, Status> {
    let vmid = made.fetch_add(1, Ordering::Relaxed) + 1;
    Ok(CloneVmResponse {
        clones: vec![CloneOutcome { vmid, ..CloneOutcome::default() }],
        ..CloneVmResponse::default()
    })
}

#[tokio::test]
async fn the_same_number_of_the_same_vm_has_the_same_answer() {
    let (calls, made) = (CloneCalls::default(), Arc::new(AtomicU32::new(0)));
    let vmid = async |key| calls.answer(key, call(Arc::clone(&made))).await.unwrap().clones[0].vmid;
    assert_eq!([vmid(key("a")).await, vmid(key("a")).await], [1, 1]);
    assert_eq!(vmid(key("b")).await, 2);
    // Of another VM, and of another family, it is another call.
    assert_eq!(vmid((Uuid::from_u128(1), 1, "a".into())).await, 3);
    assert_eq!(vmid((Uuid::from_u128(2), 0, "a".into())).await, 4);
    assert_eq!(vmid(key("a")).await, 1);
}

#[tokio::test]
async fn a_call_goes_on_when_its_caller_leaves_and_answers_who_repeats_it() {
    let calls = CloneCalls::default();
    let (go_on, wait) = oneshot::channel::<()>();
    let first = calls.answer(key("a"), async {
        wait.await.unwrap();
        call(Arc::default()).await
    });
    // It is begun, and then nobody waits for it.
    assert!(first.now_or_never().is_none());
    let again = calls.answer(key("a"), async { panic!("a second call") });
    go_on.send(()).unwrap();
    assert_eq!(again.await.unwrap().clones[0].vmid, 1);
}

#[tokio::test]
async fn a_call_that_failed_is_made_anew() {
    let calls = CloneCalls::default();
    let failed = calls.answer(key("a"), async { Err(Status::unavailable("not now")) }).await;
    assert_eq!(failed.unwrap_err().code(), Code::Unavailable);
    assert!(calls.answer(key("a"), call(Arc::default())).await.is_ok());
}

#[tokio::test]
async fn the_oldest_that_has_ended_is_forgotten_and_no_call_under_way() {
    let (calls, made) = (CloneCalls::default(), Arc::new(AtomicU32::new(0)));
    assert!(calls.answer(key("waits"), pending()).now_or_never().is_none());
    let vmid =
        async |name: &str| calls.answer(key(name), call(Arc::clone(&made))).await.unwrap().clones[0].vmid;
    assert_eq!(vmid("first").await, 1);
    for number in 0..CALLS_MAX - 2 {
        vmid(&number.to_string()).await;
    }
    assert_eq!(vmid("first").await, 1, "as many are remembered");
    vmid("one more").await;
    assert_ne!(vmid("first").await, 1);
    assert!(calls.answer(key("waits"), async { panic!("a second call") }).now_or_never().is_none());

    let calls = CloneCalls::default();
    for number in 0..CALLS_MAX {
        assert!(calls.answer(key(&number.to_string()), pending()).now_or_never().is_none());
    }
    let refused = calls.answer(key("one more"), pending()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}
