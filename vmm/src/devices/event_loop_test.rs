use super::*;
use std::sync::mpsc;

struct Counter {
    event: OwnedFd,
    seen: mpsc::Sender<u32>,
}

impl EventHandler for Counter {
    fn event(&self, token: u32) {
        let mut count = [0; 8];
        rustix::io::read(&self.event, &mut count).unwrap();
        self.seen.send(token).unwrap();
    }
}

fn counter() -> (Arc<Counter>, mpsc::Receiver<u32>) {
    let (seen, receive) = mpsc::channel();
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    (Arc::new(Counter { event, seen }), receive)
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

    devices.stop().unwrap();
    kick(&counter);
    assert_eq!(seen.try_recv(), Err(mpsc::TryRecvError::Empty), "a stopped loop handles nothing");

    devices.start().unwrap();
    assert_eq!(seen.recv(), Ok(7));
    devices.stop().unwrap();
    devices.stop().unwrap();
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
fn a_job_runs_on_the_device_thread() {
    let mut devices = DeviceLoop::new().unwrap();
    let (name, names) = mpsc::channel();
    devices.handle().run(move || name.send(std::thread::current().name().map(String::from)).unwrap());
    assert!(names.try_recv().is_err(), "it waits for the start");
    devices.start().unwrap();
    assert_eq!(names.recv().unwrap().as_deref(), Some("devices"));
}
