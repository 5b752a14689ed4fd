use super::super::TOKEN_WAKE;
use super::*;
use crate::devices::console::Console;
use crate::devices::event_loop::{DeviceLoop, EventHandler};
use patina_snapshot::layout;
use proptest::prelude::*;
use std::io::Write;
use std::os::unix::net::UnixStream;

const DATA: u8 = 0;
const ENABLE: u8 = 1;
const IDENTIFICATION: u8 = 2;
const LINE_STATUS: u8 = 5;
const SCRATCH: u8 = 7;

fn console() -> Arc<Console> {
    Arc::new(Console::new(tempfile::tempfile().unwrap(), 1000).unwrap())
}

/// A clone's console: the state has been bytes meanwhile.
fn fork(parent: &Console) -> Arc<Console> {
    let state = layout::to_bytes(&ConsoleState::save(parent).unwrap());
    let clone = console();
    layout::from_bytes::<ConsoleState>(&state).unwrap().restore(&clone).unwrap();
    clone
}

fn typed(console: &Console, text: &[u8]) -> UnixStream {
    let (near, mut far) = UnixStream::pair().unwrap();
    console.add_client(near).unwrap();
    far.write_all(text).unwrap();
    console.event(TOKEN_WAKE);
    far
}

fn guest_reads(console: &Console) -> Vec<u8> {
    std::iter::from_fn(|| (console.read(LINE_STATUS) & 1 != 0).then(|| console.read(DATA))).collect()
}

fn edges(console: &Console) -> u64 {
    console.interrupt_line().read().unwrap_or(0)
}

#[test]
fn a_clone_says_and_hears_what_is_its_own() {
    let parent = console();
    b"boot\n".iter().for_each(|byte| parent.write(DATA, *byte));
    parent.write(SCRATCH, 0x5a);
    let clone = fork(&parent);
    assert_eq!(clone.tail(), b"", "what the parent said stays with it");
    assert_eq!(clone.read(SCRATCH), 0x5a);
    clone.write(DATA, b'c');
    parent.write(DATA, b'p');
    assert_eq!((parent.tail(), clone.tail()), (b"boot\np".to_vec(), b"c".to_vec()));
    let client = typed(&clone, b"ls\n");
    assert_eq!(guest_reads(&clone), b"ls\n");
    assert_eq!(guest_reads(&parent), b"");
    drop(client);
}

#[test]
fn input_that_waits_goes_on_in_order() {
    let parent = console();
    let text: Vec<u8> = (0..1000).map(|at| (at % 251) as u8).collect();
    let client = typed(&parent, &text);
    let clone = fork(&parent);
    let more = typed(&clone, b"more");
    assert_eq!(guest_reads(&clone), [&text[..], b"more"].concat());
    assert_eq!(guest_reads(&parent), text);
    drop((client, more));
}

#[test]
fn an_interrupt_that_was_not_seen_comes_again_when_the_loop_starts() {
    let parent = console();
    parent.write(ENABLE, 1);
    let client = typed(&parent, b"x");
    assert_eq!(edges(&parent), 1);
    let clone = fork(&parent);
    assert_eq!(edges(&clone), 0, "not before KVM is ready for it");
    let mut devices = DeviceLoop::new().unwrap();
    clone.attach(&devices).unwrap();
    devices.start().unwrap();
    let line = crate::devices::sys::borrow(clone.interrupt_line());
    let mut wait = [rustix::event::PollFd::from_borrowed_fd(line, rustix::event::PollFlags::IN)];
    let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut wait, Some(&limit)).unwrap(), 1);
    devices.stop(std::time::Duration::from_secs(60)).unwrap();
    assert_eq!(edges(&clone), 1);
    assert_eq!(clone.read(IDENTIFICATION) & 0x0f, 4, "received data");
    assert_eq!(guest_reads(&clone), b"x");

    let quiet = fork(&clone);
    quiet.event(TOKEN_WAKE);
    assert_eq!(edges(&quiet), 0, "one that was seen does not");
    let more = typed(&quiet, b"y");
    assert_eq!(edges(&quiet), 1, "and the line works");
    drop((client, more));
}

#[test]
fn states_that_cannot_be_are_refused() {
    let clone = console();
    let mut state = ConsoleState::save(&console()).unwrap();
    state.port.in_buffer = vec![0; 65];
    assert!(matches!(state.restore(&clone), Err(RestoreError::Port { bytes: 65 })));
    state.port.in_buffer.clear();
    state.input = vec![0; INPUT_MAX_BYTES + 1];
    assert!(matches!(state.restore(&clone), Err(RestoreError::Input { .. })));
    clone.write(DATA, b'x');
    assert_eq!(clone.tail(), b"x");
}

proptest! {
    #[test]
    fn any_registers_are_survived(registers in any::<[u8; 9]>(), fifo in prop::collection::vec(any::<u8>(), 0..70), input in prop::collection::vec(any::<u8>(), 0..200), accesses in prop::collection::vec((any::<bool>(), 0_u8..8, any::<u8>()), 0..100)) {
        let [baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status, modem_control, modem_status, scratch] = registers;
        let port = PortState { baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status, modem_control, modem_status, scratch, in_buffer: fifo };
        let console = console();
        let fits = port.in_buffer.len() <= 64;
        prop_assert_eq!(ConsoleState { port, input }.restore(&console).is_ok(), fits);
        for (write, offset, value) in accesses {
            if write {
                console.write(offset, value);
            } else {
                console.read(offset);
            }
            console.event(TOKEN_WAKE);
        }
    }
}
