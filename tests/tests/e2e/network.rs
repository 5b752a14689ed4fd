//! TCP between host and guest, directly and through a published port.

use crate::{
    Outcome, Story,
    stage::{GUEST_PORT, Stage},
};
use libtest_mimic::Failed;
use patina_tests::vm::Vm;
use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    time::Duration,
};

pub const STORIES: &[Story] = stories![
    the_host_reaches_the_guest_through_a_published_port,
    the_host_reaches_the_guest_by_its_address,
    the_guest_reaches_the_host,
    a_connection_to_a_port_without_a_server_ends,
];

/// Says everything back.
pub const ECHO: &str = "cat";

/// Has a program answer each caller at a port of a guest, each in a process of its own; it listens.
/// The guest's small programs are enough for that: a start of Python takes many times as long.
pub fn serve(vm: &Vm<'_>, port: u16, program: &str) -> Outcome {
    vm.sh(&format!(
        "setsid nc -ll -p {port} -e {program} < /dev/null > /dev/null 2>&1 & \
         until cat /proc/net/tcp /proc/net/tcp6 2> /dev/null | grep -q ':{port:04X} 0*:0000 0A'; do sleep 0.1; done"
    ))?;
    Ok(())
}

/// Ends what [`serve`] has started.
pub fn end_servers(vm: &Vm<'_>) -> Outcome {
    vm.sh("kill $(pidof nc)")?;
    Ok(())
}

/// Sends bytes and hears them back.
pub fn round_trip(address: &str, port: u16, length: usize) -> Outcome {
    let mut stream = TcpStream::connect((address, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let sent: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
    let mut writer = stream.try_clone()?;
    let heard = std::thread::scope(|scope| {
        let sending = scope.spawn(|| writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard)?;
        sending.join().map_err(|_| std::io::Error::other("the writer panicked"))??;
        Ok::<_, std::io::Error>(heard)
    })?;
    assert!(heard == sent, "sent {length} bytes, heard {} or others", heard.len());
    Ok(())
}

fn the_host_reaches_the_guest_through_a_published_port(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    serve(&guest, GUEST_PORT, ECHO)?;
    round_trip("127.0.0.1", stage.published(), 5)?;
    round_trip("127.0.0.1", stage.published(), 300_000)?;
    end_servers(&guest)
}

fn the_host_reaches_the_guest_by_its_address(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    serve(&guest, 8081, ECHO)?;
    round_trip(&guest.field("ip")?, 8081, 300_000)?;
    end_servers(&guest)
}

fn the_guest_reaches_the_host(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let gateway = guest.field("gateway")?;
    let listener = TcpListener::bind((gateway.as_str(), 0))?;
    let port = listener.local_addr()?.port();
    let script = format!("printf 'from the guest' | nc {gateway} {port}");
    let (heard, said) = std::thread::scope(|scope| {
        let guest = scope.spawn(|| guest.sh(&script).map_err(|error| error.to_string()));
        let (mut stream, peer) = listener.accept()?;
        let mut heard = [0; 14];
        stream.read_exact(&mut heard)?;
        stream.write_all(b"from the host")?;
        drop(stream);
        let said = guest.join().unwrap_or_else(|_| Err("panicked".into()));
        Ok::<_, Failed>(((heard, peer.ip().to_string()), said))
    })?;
    assert_eq!(heard, (*b"from the guest", stage.guest()?.field("ip")?));
    assert_eq!(said, Ok("from the host".to_owned()));
    Ok(())
}

fn a_connection_to_a_port_without_a_server_ends(stage: &Stage) -> Outcome {
    stage.guest()?;
    let mut stream = TcpStream::connect(("127.0.0.1", stage.published()))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    // The proxy takes the connection and closes it when the guest refuses: an end or a reset, no
    // hang.
    match stream.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    Ok(())
}
