use super::*;
use std::sync::mpsc;
use std::thread::ThreadId;

struct Counter {
    event: OwnedFd,
    seen: mpsc::Sender<u32>,
    threads: Mutex<Vec<ThreadId>>,
}

impl EventHandler for Counter {
    fn event(&self, token: u32) {
        let mut count = [0; 8];
        rustix::io::read(&self.event, &mut count).unwrap();
        lock(&self.threads).push(std::thread::current().id());
        self.seen.send(token).expect("whoever hears it");
    }
}

fn counter() -> (Arc<Counter>, mpsc::Receiver<u32>) {
    let (seen, receive) = mpsc::channel();
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    (Arc::new(Counter { event, seen, threads: Mutex::default() }), receive)
}

fn kick(counter: &Counter) {
    rustix::io::write(&counter.event, &1_u64.to_ne_bytes()).unwrap();
}

#[test]
fn events_while_stopped_are_handled_after_the_next_start() {
    let (counter, seen) = counter();
    let mut devices = DeviceLoop::new().unwrap();
    devices.add(counter.clone(), &[Source { fd: counter.event.as_fd(), token: 7, edge: false }]).unwrap();
    devices.start().unwrap();
    kick(&counter);
    assert_eq!(seen.recv(), Ok(7));

    devices.stop(Duration::from_secs(60)).unwrap();
    kick(&counter);
    assert_eq!(seen.try_recv(), Err(mpsc::TryRecvError::Empty), "a stopped loop handles nothing");

    devices.start().unwrap();
    assert_eq!(seen.recv(), Ok(7));
    devices.stop(Duration::from_secs(60)).unwrap();
    devices.stop(Duration::from_secs(60)).unwrap();
    let threads = lock(&counter.threads).clone();
    assert_eq!(threads[0], threads[1], "a thread that waits need not be made anew");
}

#[test]
fn edges_while_stopped_are_kept() {
    let (counter, seen) = counter();
    let mut devices = DeviceLoop::new().unwrap();
    devices.add(counter.clone(), &[Source { fd: counter.event.as_fd(), token: 1, edge: true }]).unwrap();
    kick(&counter);
    devices.start().unwrap();
    assert_eq!(seen.recv(), Ok(1));
}

#[test]
fn a_loop_can_be_stopped_and_started_while_events_come() {
    let (counter, seen) = counter();
    let mut devices = DeviceLoop::new().unwrap();
    devices.add(counter.clone(), &[Source { fd: counter.event.as_fd(), token: 3, edge: false }]).unwrap();
    for _ in 0..2000 {
        devices.start().unwrap();
        kick(&counter);
        devices.stop(Duration::from_secs(60)).unwrap();
    }
    devices.start().unwrap();
    kick(&counter);
    assert_eq!(seen.recv(), Ok(3));
}

#[test]
fn a_thread_that_has_ended_is_no_thread_that_has_stopped() {
    let (counter, seen) = counter();
    let mut devices = DeviceLoop::new().unwrap();
    devices.add(counter.clone(), &[Source { fd: counter.event.as_fd(), token: 1, edge: false }]).unwrap();
    devices.start().unwrap();
    // The handler panics, as nobody hears it.
    drop(seen);
    kick(&counter);
    // It may be stopped before it has seen the event, but it comes to an end then.
    let mut stopped = devices.stop(Duration::from_secs(60));
    while stopped.is_ok() {
        devices.start().unwrap();
        stopped = devices.stop(Duration::from_secs(60));
    }
    assert!(matches!(stopped, Err(LoopError::Panicked)));
}

/// Says that it is at an event, and goes on when it is told to.
struct Slow {
    at: mpsc::Sender<u32>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl EventHandler for Slow {
    fn event(&self, token: u32) {
        self.at.send(token).expect("whoever hears it");
        lock(&self.go_on).recv().expect("a word to go on");
    }
}

#[test]
fn a_loop_stops_after_the_event_at_hand_and_keeps_the_rest_of_the_batch() {
    let event = || eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    // Edges: the kernel reports each of them once.
    let events: Vec<_> = (0..4).map(|_| event()).collect();
    let (at, seen) = mpsc::channel();
    let (go_on, told) = mpsc::channel();
    let mut devices = DeviceLoop::new().unwrap();
    let sources = (0..).zip(&events).map(|(token, event)| Source { fd: event.as_fd(), token, edge: true });
    let slow = Arc::new(Slow { at, go_on: Mutex::new(told) });
    devices.add(slow, &sources.collect::<Vec<_>>()).unwrap();
    devices.start().unwrap();
    let first = seen.recv().unwrap();
    // All four are in one batch, as they were there before the loop was. It is told to stop while
    // it is at the first.
    let shared = Arc::clone(&devices.shared);
    let stopper = std::thread::spawn(move || devices.stop(Duration::from_secs(60)).map(|()| devices));
    while *lock(&shared.phase) != Phase::Stopping {
        std::thread::yield_now();
    }
    go_on.send(()).unwrap();
    // One that goes on with the next event waits for a word there, and is never stopped: the test
    // hangs.
    let mut devices = stopper.join().unwrap().unwrap();
    assert_eq!(seen.try_recv(), Err(mpsc::TryRecvError::Empty), "it goes on with the batch before it stops");
    (0..4).for_each(|_| go_on.send(()).unwrap());
    devices.start().unwrap();
    let mut all: Vec<_> = std::iter::once(first).chain((0..3).map(|_| seen.recv().unwrap())).collect();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3]);
}

/// As a device whose access to guest memory waits for a page that does not arrive.
#[test]
fn a_loop_whose_device_does_not_come_to_an_end_goes_on() {
    let event = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let ((at, seen), (go_on, told)) = (mpsc::channel(), mpsc::channel());
    let mut devices = DeviceLoop::new().unwrap();
    let source = Source { fd: event.as_fd(), token: 4, edge: true };
    devices.add(Arc::new(Slow { at, go_on: Mutex::new(told) }), &[source]).unwrap();
    devices.start().unwrap();
    assert_eq!(seen.recv(), Ok(4));
    let refused = devices.stop(Duration::from_millis(20));
    assert!(matches!(refused, Err(LoopError::Busy(_))), "{refused:?}");
    // The page arrives: the devices are not stopped, and can be.
    go_on.send(()).unwrap();
    go_on.send(()).unwrap();
    rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(seen.recv(), Ok(4));
    devices.stop(Duration::from_secs(60)).unwrap();
}

#[test]
fn a_loop_that_was_only_prepared_handles_nothing_until_it_is_started() {
    let (counter, seen) = counter();
    let mut devices = DeviceLoop::new().unwrap();
    devices.add(counter.clone(), &[Source { fd: counter.event.as_fd(), token: 5, edge: true }]).unwrap();
    devices.prepare().unwrap();
    kick(&counter);
    // It is stopped already, whether its thread has begun or not.
    devices.stop(Duration::from_secs(60)).unwrap();
    assert_eq!(seen.try_recv(), Err(mpsc::TryRecvError::Empty));
    devices.start().unwrap();
    assert_eq!(seen.recv(), Ok(5));
    let mut never_started = DeviceLoop::new().unwrap();
    never_started.prepare().unwrap();
}
