//! Who is there: a server that answers with what is in a file, by TCP and by UDP, and one who asks.

use std::{
    error::Error,
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

/// Longer than any answer.
const ANSWER_BYTES: usize = 2000;

/// Answers each caller at a port with what is in `file` then; says when it listens.
pub fn serve(port: u16, file: &str) -> Result<(), Box<dyn Error>> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let (datagrams, connections) = (UdpSocket::bind(any)?, TcpListener::bind(any)?);
    let own = file.to_owned();
    thread::spawn(move || {
        let told = answer_datagrams(&datagrams, &own);
        eprintln!("answer by UDP: {told:?}");
    });
    println!("listening");
    loop {
        // One who has gone meanwhile is no reason to end.
        if let Err(error) = connections.accept().and_then(|(mut caller, _)| caller.write_all(&own_of(file)?))
        {
            eprintln!("answer by TCP: {error}");
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, file: &str) -> io::Result<()> {
    loop {
        let (_, peer) = socket.recv_from(&mut [0; ANSWER_BYTES])?;
        socket.send_to(&own_of(file)?, peer)?;
    }
}

fn own_of(file: &str) -> io::Result<Vec<u8>> {
    Ok(fs::read(file)?.trim_ascii().to_vec())
}

/// Prints what each address answers by TCP and by UDP within so many seconds each, or `-`.
pub fn ask(seconds: u32, port: u16, addresses: &[&str]) -> Result<(), Box<dyn Error>> {
    let patience = Duration::from_secs(seconds.into());
    for address in addresses {
        let to = SocketAddr::from((address.parse::<IpAddr>()?, port));
        let shown = |answer: io::Result<String>| answer.unwrap_or_else(|_| "-".to_owned());
        println!("{} {}", shown(by_tcp(to, patience)), shown(by_udp(to, patience)));
    }
    Ok(())
}

fn by_tcp(to: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn by_udp(to: SocketAddr, patience: Duration) -> io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut answer = [0; ANSWER_BYTES];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}
