use super::*;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;

const MAX: u64 = 1000;

fn console() -> (Arc<Console>, File) {
    let file = tempfile::tempfile().unwrap();
    (Arc::new(Console::new(file.try_clone().unwrap(), MAX).unwrap()), file)
}

fn say(console: &Console, text: &[u8]) {
    text.iter().for_each(|byte| console.write(0, *byte));
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn client(console: &Console) -> UnixStream {
    let (near, far) = UnixStream::pair().unwrap();
    console.add_client(near).unwrap();
    far.set_nonblocking(true).unwrap();
    far
}

/// What the guest reads, as long as the port says that there is something.
fn guest_reads(console: &Console) -> Vec<u8> {
    std::iter::from_fn(|| (console.read(5) & 1 != 0).then(|| console.read(0))).collect()
}

#[test]
fn output_goes_to_the_log_the_clients_and_the_tail() {
    let (console, file) = console();
    let mut client = client(&console);
    say(&console, b"hello\n");
    assert_eq!(console.tail(), b"hello\n", "the tail does not wait for the device thread");
    console.event(TOKEN_OUTPUT);
    assert_eq!(contents(&file), b"hello\n");
    let mut seen = [0; 6];
    client.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello\n");
}

#[test]
fn a_guest_that_fills_the_console_fills_nothing_else() {
    let (console, file) = console();
    let mut slow = client(&console);
    for line in 0..20_000 {
        say(&console, format!("line {line}\n").as_bytes());
        assert!(file.metadata().unwrap().len() <= MAX);
    }
    console.flush();
    let text = String::from_utf8(contents(&file)).unwrap();
    assert!(text.ends_with("line 19999\n"), "{text}");
    assert!(text.lines().all(|line| line.starts_with("line ")), "whole lines: {text}");
    assert!(text.len() as u64 >= MAX / 2 - 20);
    assert!(console.tail().len() == TAIL_BYTES && console.tail().ends_with(b"line 19999\n"));
    // The client's socket took what it had room for, and the client is still attached.
    let mut seen = Vec::new();
    assert_eq!(slow.read_to_end(&mut seen).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(seen.starts_with(b"line 0\nline 1\n"));
    say(&console, b"again");
    console.flush();
    let mut seen = [0; 5];
    slow.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"again");
}

#[test]
fn a_log_without_lines_is_bounded_too() {
    let (console, file) = console();
    say(&console, &[b'x'; 10_000]);
    console.flush();
    let length = file.metadata().unwrap().len();
    assert!((MAX / 2..=MAX).contains(&length), "{length}");
}

#[test]
fn input_reaches_the_guest_with_an_interrupt() {
    let (console, _) = console();
    let mut client = client(&console);
    console.write(1, 1);
    client.write_all(b"ls\n").unwrap();
    console.event(TOKEN_CLIENTS);
    assert_eq!(console.interrupt_line().read().unwrap(), 1);
    assert_eq!(guest_reads(&console), b"ls\n");
}

#[test]
fn more_input_than_the_port_holds_arrives_in_order() {
    let (console, _) = console();
    let mut client = client(&console);
    let text: Vec<u8> = (0..3 * INPUT_MAX_BYTES).map(|at| (at % 251) as u8).collect();
    client.write_all(&text).unwrap();
    let mut seen = Vec::new();
    for _ in 0..10 {
        console.event(TOKEN_WAKE);
        assert!(lock(&console.input).len() <= INPUT_MAX_BYTES);
        seen.extend(guest_reads(&console));
    }
    assert_eq!(seen, text);
}

#[test]
fn the_ninth_client_is_refused_until_one_leaves() {
    let (console, _) = console();
    let mut clients: Vec<_> = (0..CLIENTS_MAX).map(|_| client(&console)).collect();
    let extra = || console.add_client(UnixStream::pair().unwrap().0);
    assert!(matches!(extra(), Err(ConsoleError::TooManyClients)));
    clients.pop();
    console.event(TOKEN_CLIENTS);
    extra().unwrap();
}

#[test]
fn the_device_thread_writes_the_log() {
    let (console, _) = console();
    let mut devices = DeviceLoop::new().unwrap();
    console.attach(&devices).unwrap();
    devices.start().unwrap();
    let mut client = client(&console);
    client.set_nonblocking(false).unwrap();
    say(&console, b"boot");
    let mut seen = [0; 4];
    client.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"boot");
    client.write_all(b"x").unwrap();
    devices.stop(std::time::Duration::from_secs(60)).unwrap();
}

#[test]
fn any_port_access_is_survived() {
    let (console, _) = console();
    for value in 0..=255 {
        for offset in 0..=255 {
            console.write(offset, value);
            console.read(offset);
        }
    }
}
