//! The link between two hosts: how long a message takes there and back, and how much it carries.

use super::RemoteError;
use patina_tests::{
    host::HostError,
    switch::{Entered, Switch},
};
use serde_json::Value;
use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Instant,
};

/// The host that is called, and the one that calls.
const SERVER: u8 = 0;
const CLIENT: u8 = 1;
/// A request for a run, and the run with what is before it: see `patina_pager::peer::wire`.
const REQUEST: usize = 16;
const RUN: usize = 64 * 1024 + 16;
/// What a copy writes at once, and all of it.
const CHUNK: usize = 128 * 1024;
const COPY_CHUNKS: usize = 8192;
const MIB: f64 = (1 << 20) as f64;

/// The shortest message there and back, microseconds, so many times.
pub fn round_trips(switch: &Switch, count: usize) -> Result<Vec<f64>, RemoteError> {
    asked(switch, 1, 1, count)
}

/// A request for a run and its answer, plain and without a pager, microseconds.
pub fn runs(switch: &Switch, count: usize) -> Result<Vec<f64>, RemoteError> {
    asked(switch, REQUEST, RUN, count)
}

fn asked(switch: &Switch, request: usize, answer: usize, count: usize) -> Result<Vec<f64>, RemoteError> {
    let serve = move |mut stream: TcpStream| {
        let (mut asked, told) = (vec![0; request], vec![7; answer]);
        for _ in 0..count {
            stream.read_exact(&mut asked)?;
            stream.write_all(&told)?;
        }
        Ok(())
    };
    let ask = move |mut stream: TcpStream| {
        let (asking, mut told) = (vec![1; request], vec![0; answer]);
        (0..count)
            .map(|_| {
                let begun = Instant::now();
                stream.write_all(&asking)?;
                stream.read_exact(&mut told)?;
                Ok(begun.elapsed().as_secs_f64() * 1e6)
            })
            .collect()
    };
    between(switch, serve, ask)
}

/// MiB a second of one plain TCP connection.
pub fn copied_mib_per_s(switch: &Switch) -> Result<f64, RemoteError> {
    let send = |mut stream: TcpStream| {
        let chunk = vec![7; CHUNK];
        (0..COPY_CHUNKS).try_for_each(|_| stream.write_all(&chunk))
    };
    let receive = |mut stream: TcpStream| {
        let mut chunk = vec![0; CHUNK];
        let begun = Instant::now();
        for _ in 0..COPY_CHUNKS {
            stream.read_exact(&mut chunk)?;
        }
        Ok((CHUNK * COPY_CHUNKS) as f64 / MIB / begun.elapsed().as_secs_f64())
    };
    between(switch, send, receive)
}

/// Connects both hosts, and does the one thing on one host and the other thing on the other.
fn between<T: Send>(
    switch: &Switch,
    serve: impl FnOnce(TcpStream) -> io::Result<()> + Send,
    call: impl FnOnce(TcpStream) -> io::Result<T> + Send,
) -> Result<T, RemoteError> {
    let on = |host: u8| -> Result<Entered, HostError> { switch.enter(host) };
    let ip = switch.address(SERVER);
    let listener = {
        let _there = on(SERVER)?;
        TcpListener::bind((ip.as_str(), 0)).map_err(RemoteError::Link)?
    };
    let address = listener.local_addr().map_err(RemoteError::Link)?;
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            serve(stream)
        });
        let client = scope.spawn(move || -> Result<T, RemoteError> {
            let _there = on(CLIENT)?;
            let stream = TcpStream::connect(address).map_err(RemoteError::Link)?;
            stream.set_nodelay(true).map_err(RemoteError::Link)?;
            call(stream).map_err(RemoteError::Link)
        });
        let panicked = |_| RemoteError::Link(io::Error::other("the thread panicked"));
        let called = client.join().map_err(panicked)??;
        server.join().map_err(panicked)?.map_err(RemoteError::Link)?;
        Ok(called)
    })
}

/// The bytes that a host has received and sent so far, headers included.
pub fn moved(switch: &Switch, host: u8) -> Result<f64, RemoteError> {
    let text = switch.call(host, &["ip", "-s", "-j", "link", "show", "dev", "hosts"])?;
    counted(&text).ok_or(RemoteError::Counters(text))
}

fn counted(text: &str) -> Option<f64> {
    let links: Value = serde_json::from_str(text).ok()?;
    let bytes = |way: &str| links[0]["stats64"][way]["bytes"].as_f64();
    Some(bytes("rx")? + bytes("tx")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_counted() {
        let text = r#"[{"ifname":"hosts","stats64":{"rx":{"bytes":40,"packets":1},"tx":{"bytes":2}}}]"#;
        assert_eq!(counted(text), Some(42.0));
        assert_eq!(counted("[{}]"), None);
    }
}
