//! TCP between host and guest, directly and through a published port.

use crate::{
    Outcome, Story,
    stage::{GUEST_PORT, SHARED, Stage},
};
use libtest_mimic::Failed;
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Child, Stdio},
    time::Duration,
};

pub const STORIES: &[Story] = stories![
    the_host_reaches_the_guest_through_a_published_port,
    the_host_reaches_the_guest_by_its_address,
    the_guest_reaches_the_host,
    a_connection_to_a_port_without_a_server_ends,
];

/// Says everything back, to one caller after another.
pub const ECHO: &str = "import socket, sys
s = socket.create_server(('', int(sys.argv[1])))
print('listening', flush=True)
for _ in range(int(sys.argv[2])):
    c, peer = s.accept()
    while data := c.recv(65536):
        c.sendall(data)
    c.close()";

/// An echo server in the guest, listening.
fn echo_server(stage: &Stage, port: u16, callers: u32) -> Result<Child, Failed> {
    stage.guest()?;
    let (port, callers) = (port.to_string(), callers.to_string());
    let mut server = stage
        .host()?
        .vmctl_command(&["exec", SHARED, "--", "python3", "-c", ECHO, &port, &callers])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no pipe")?).read_line(&mut line)?;
    if line == "listening\n" { Ok(server) } else { Err(format!("the server printed {line:?}").into()) }
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
    let mut server = echo_server(stage, GUEST_PORT, 2)?;
    round_trip("127.0.0.1", stage.published(), 5)?;
    round_trip("127.0.0.1", stage.published(), 300_000)?;
    assert!(server.wait()?.success());
    Ok(())
}

fn the_host_reaches_the_guest_by_its_address(stage: &Stage) -> Outcome {
    let mut server = echo_server(stage, 8081, 1)?;
    round_trip(&stage.guest()?.field("ip")?, 8081, 300_000)?;
    assert!(server.wait()?.success());
    Ok(())
}

fn the_guest_reaches_the_host(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let gateway = guest.field("gateway")?;
    let listener = TcpListener::bind((gateway.as_str(), 0))?;
    let port = listener.local_addr()?.port();
    let script = format!(
        "import socket; s = socket.create_connection(('{gateway}', {port})); s.sendall(b'from the guest'); print(s.recv(50).decode())"
    );
    let (heard, said) = std::thread::scope(|scope| {
        let guest =
            scope.spawn(|| guest.call(&["python3", "-c", &script]).map_err(|error| error.to_string()));
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
