use super::*;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// A vCPU's thread that comes to the gate once for each word, when the gate is shut, and does its
/// jobs there. It counts them.
fn vcpu(gate: &Arc<Gate>) -> (Target, Sender<Job<u32>>, Sender<()>, Receiver<u32>) {
    let ((jobs, own), (word, words), (tell, done)) = (channel(), channel::<()>(), channel());
    let gate = Arc::clone(gate);
    let thread = std::thread::spawn(move || {
        let mut count = 0;
        while words.recv().is_ok() {
            while !gate.is_shut() {
                std::thread::yield_now();
            }
            gate.wait(&mut count, &own);
            tell.send(count).ok();
        }
    });
    assert!(thread.as_pthread_t() != 0);
    (Target::new(thread), jobs, word, done)
}

#[test]
fn a_vcpu_that_does_not_stop_makes_the_pause_fail_and_does_its_job_never() {
    crate::sys::kick::take_kicks().expect("a handler");
    let gate = Arc::new(Gate::new(2, false));
    let (first, second) = (vcpu(&gate), vcpu(&gate));
    let vcpus = Vcpus::new(Arc::clone(&gate), vec![(first.0, first.1), (second.0, second.1)]);
    let job = |count: &mut u32| {
        *count += 1;
        *count
    };
    // Only the first one stops.
    first.2.send(()).expect("a word");
    let patience = Duration::from_millis(20);
    let paused = vcpus.pause_and(job, patience);
    assert!(matches!(paused, Err(PauseError::Busy { patience: told, .. }) if told == patience), "{paused:?}");
    // The second one comes too late, with the gate still shut: nothing waits for its job.
    second.2.send(()).expect("a word");
    while gate.lock().waiting < 2 {
        std::thread::yield_now();
    }
    vcpus.resume();
    assert_eq!((first.3.recv(), second.3.recv()), (Ok(0), Ok(0)));
    // The next pause is as if that one had never been.
    first.2.send(()).expect("a word");
    second.2.send(()).expect("a word");
    assert_eq!(vcpus.pause_and(job, Duration::from_secs(60)), Ok(vec![1, 1]));
    vcpus.resume();
    assert_eq!((first.3.recv(), second.3.recv()), (Ok(1), Ok(1)));
}
