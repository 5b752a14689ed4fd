//! TLS 1.3 between two pagers, in which both sides show the same certificate
//! ([`patina_control::pager::Credential`]).
//!
//! Received bytes are read from the socket without the lock that encrypting needs: whoever waits
//! for an answer holds up nobody who asks.

mod same;

use patina_control::best_effort;
use patina_control::pager::Credential;
use patina_daemon::lock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sendmsg, shutdown};
use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ServerConnection};
use rustls::version::TLS13;
use rustls::{ClientConfig, Connection, Error, ServerConfig};
use same::Same;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// How many bytes are read from the socket at a time: a run and what is around it.
const READ_BYTES: usize = 80 * 1024;
/// A name that nobody looks up: the whole certificate is compared.
const NAME: &str = "pager.patina.invalid";

/// The side of a connection that sends.
pub struct Sender {
    stream: File,
    tls: Mutex<Connection>,
    flags: SendFlags,
}

/// The side of a connection that receives.
pub struct Receiver {
    sender: Arc<Sender>,
    raw: Box<[u8]>,
    /// Which of `raw` is not decrypted yet.
    start: usize,
    end: usize,
    is_ended: bool,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sender").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Receiver").field("sender", &self.sender).finish_non_exhaustive()
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The side that asks. It never waits to send: what it sends is so little that it always has room,
/// unless the other side does not read. The handshake is made with [`Receiver::handshake`].
///
/// # Errors
/// The credential is none.
pub fn client(stream: File, credential: &Credential) -> io::Result<(Arc<Sender>, Receiver)> {
    let config = client_config(credential, credential)?;
    let name = ServerName::try_from(NAME).map_err(|error| io::Error::other(error.to_string()))?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(invalid)?;
    Ok(ends(stream, connection.into(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT))
}

fn client_config(shown: &Credential, wanted: &Credential) -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let ((wanted, _), (certificate, key)) = (parts(wanted), parts(shown));
    let same = Arc::new(Same { certificate: wanted, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(invalid)?
        .dangerous()
        .with_custom_certificate_verifier(same)
        .with_client_auth_cert(vec![certificate], key)
        .map_err(invalid)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The side that answers.
///
/// # Errors
/// The credential is none.
pub fn server(stream: File, credential: &Credential) -> io::Result<(Arc<Sender>, Receiver)> {
    let provider = Arc::new(ring::default_provider());
    let (certificate, key) = parts(credential);
    let same = Arc::new(Same { certificate: certificate.clone(), provider: Arc::clone(&provider) });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(invalid)?
        .with_client_cert_verifier(same)
        .with_single_cert(vec![certificate], key)
        .map_err(invalid)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let connection = ServerConnection::new(Arc::new(config)).map_err(invalid)?;
    Ok(ends(stream, connection.into(), SendFlags::NOSIGNAL))
}

fn parts(credential: &Credential) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = PrivatePkcs8KeyDer::from(credential.key.clone());
    (CertificateDer::from(credential.certificate.clone()), key.into())
}

fn ends(stream: File, tls: Connection, flags: SendFlags) -> (Arc<Sender>, Receiver) {
    let sender = Arc::new(Sender { stream, tls: Mutex::new(tls), flags });
    let raw = vec![0; READ_BYTES].into_boxed_slice();
    let receiver = Receiver { sender: Arc::clone(&sender), raw, start: 0, end: 0, is_ended: false };
    (sender, receiver)
}

impl Sender {
    /// Sends bytes.
    ///
    /// # Errors
    /// The connection broke, or has no room where it may not be waited for.
    pub fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut tls = lock(&self.tls);
        while !bytes.is_empty() {
            let taken = tls.writer().write(bytes)?;
            bytes = bytes.get(taken..).unwrap_or_default();
            self.flush(&mut tls)?;
        }
        Ok(())
    }

    fn flush(&self, tls: &mut Connection) -> io::Result<()> {
        while tls.wants_write() {
            tls.write_tls(&mut Raw(self))?;
        }
        Ok(())
    }

    /// Tells the other side that nothing more is needed, and hangs up. Only for the side that asks:
    /// the other one may be sending.
    pub fn close(&self) {
        let mut tls = lock(&self.tls);
        tls.send_close_notify();
        best_effort(self.flush(&mut tls), "the other side may have hung up");
        self.hang_up();
    }

    /// Hangs up, whoever sends or receives.
    pub fn hang_up(&self) {
        best_effort(shutdown(&self.stream, Shutdown::Both), "the other side may have hung up");
    }
}

/// The socket, for what is encrypted.
struct Raw<'a>(&'a Sender);

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(sendmsg(&self.0.stream, slices, &mut SendAncillaryBuffer::default(), self.0.flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Receiver {
    /// Agrees on keys with the other side, which must have the same credential.
    ///
    /// # Errors
    /// It has not, or is not done by `deadline`.
    pub fn handshake(&mut self, deadline: Instant) -> io::Result<()> {
        let sender = Arc::clone(&self.sender);
        loop {
            let mut tls = lock(&sender.tls);
            sender.flush(&mut tls)?;
            if !tls.is_handshaking() {
                return Ok(());
            }
            if self.start == self.end {
                drop(tls);
                wait_for_input(&sender.stream, deadline)?;
                if self.fill()? == 0 {
                    let closed = "the other host has hung up; it may have ended the lease";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, closed));
                }
                continue;
            }
            self.decrypt(&mut tls)?;
        }
    }

    /// Whether the other side has ended the connection as one does that needs no more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Reads from the socket. How many bytes came. 0: the other side has hung up.
    fn fill(&mut self) -> io::Result<usize> {
        self.start = 0;
        self.end = 0;
        self.end = (&self.sender.stream).read(&mut self.raw)?;
        Ok(self.end)
    }

    /// Decrypts some of what was read.
    fn decrypt(&mut self, tls: &mut Connection) -> io::Result<()> {
        let mut rest = &self.raw[self.start..self.end];
        self.start += tls.read_tls(&mut rest)?;
        tls.process_new_packets().map(drop).map_err(invalid).inspect_err(|_| {
            best_effort(self.sender.flush(tls), "it would tell the other side why");
        })
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let sender = Arc::clone(&self.sender);
        loop {
            let mut tls = lock(&sender.tls);
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) if !buffer.is_empty() => {
                    self.is_ended = true;
                    return Ok(0);
                }
                other => return other,
            }
            if self.start == self.end {
                drop(tls);
                let is_over = self.fill()? == 0;
                tls = lock(&sender.tls);
                if is_over {
                    // It tells an end from a connection that was cut.
                    tls.read_tls(&mut io::empty())?;
                    continue;
                }
            }
            self.decrypt(&mut tls)?;
            sender.flush(&mut tls)?;
        }
    }
}

fn wait_for_input(stream: &File, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the other host does not answer")),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    fn credential() -> Credential {
        patina_pki::credential().unwrap()
    }

    /// What the side that answers finds of one that shows a certificate, and takes the right one.
    fn answer(shown: &Credential, wanted: &Credential) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let config = client_config(shown, wanted).unwrap();
        let asking = thread::spawn(move || {
            let connection =
                ClientConnection::new(Arc::new(config), ServerName::try_from(NAME).unwrap()).unwrap();
            let (sender, mut receiver) =
                ends(OwnedFd::from(ours).into(), connection.into(), SendFlags::NOSIGNAL);
            receiver.handshake(deadline).unwrap();
            // Who asks knows only from the first answer whether it is let in.
            sender.send(b"request").unwrap_or_default();
            receiver.read(&mut [0; 1]).is_ok()
        });
        let (sender, mut receiver) = server(OwnedFd::from(theirs).into(), wanted).unwrap();
        let agreed = receiver.handshake(deadline);
        if agreed.is_ok() {
            receiver.read_exact(&mut [0; 7]).unwrap();
            sender.send(b"answer").unwrap();
        }
        drop((sender, receiver));
        assert_eq!(asking.join().unwrap(), agreed.is_ok());
        agreed
    }

    #[test]
    fn who_shows_another_certificate_gets_no_answer() {
        let (ours, other) = (credential(), credential());
        answer(&ours, &ours).unwrap();
        let refused = answer(&other, &ours).unwrap_err().to_string();
        assert!(refused.contains("certificate"), "{refused}");
    }

    #[test]
    fn a_certificate_without_its_key_is_no_credential() {
        let without_key = Credential { key: credential().key, ..credential() };
        assert!(client_config(&without_key, &without_key).is_err());
    }

    #[test]
    fn who_says_nothing_is_not_waited_for_long() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let (_sender, mut receiver) = server(OwnedFd::from(theirs).into(), &credential()).unwrap();
        let late = receiver.handshake(Instant::now()).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
