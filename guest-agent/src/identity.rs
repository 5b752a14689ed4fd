//! The identity as programs in the guest see it: a file of `KEY=VALUE` lines, replaced by rename,
//! and a line in /etc/hosts. The host's message is checked here before it is used.

use crate::sys::input::append;
use crate::sys::random::SEED_BYTES;
use patina_abi::link::Identity;
use patina_abi::local::IDENTITY_MAX_BYTES;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Longest host name, bytes: Linux's own limit.
pub const HOSTNAME_MAX_BYTES: usize = 64;
/// Longest /etc/hosts that is still edited, bytes.
pub const HOSTS_MAX_BYTES: usize = 64 * 1024;
/// How much of a file is read at once.
const CHUNK_BYTES: usize = 4096;
/// Ends the line of /etc/hosts that is ours.
const HOSTS_MARK: &str = "# patina";

/// Why an identity is refused or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a name of letters, digits, `-`, `_` and `.`.
    #[error("identity: invalid host name {0:?}")]
    Hostname(String),
    /// Not six bytes of hex with colons.
    #[error("identity: invalid MAC address {0:?}")]
    Mac(String),
    /// More than 32 bits of network.
    #[error("identity: the prefix length {0} is over 32")]
    Prefix(u8),
    /// Not a UUID's characters.
    #[error("identity: the family {0:?} is not a UUID")]
    Family(String),
    /// Not a UUID's characters.
    #[error("identity: the ticket {0:?} is not a UUID")]
    Ticket(String),
    /// The file would be larger than [`IDENTITY_MAX_BYTES`].
    #[error("identity: {0} bytes are more than {IDENTITY_MAX_BYTES}")]
    Size(usize),
    /// A file could not be replaced.
    #[error("replace {path}")]
    Replace {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Reads `02:00:00:00:00:01`.
#[must_use]
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Reads the 64 hex digits of an identity's seed; none where it has none.
#[must_use]
pub fn parse_seed(text: &str) -> Option<[u8; SEED_BYTES]> {
    let mut seed = [0; SEED_BYTES];
    if text.len() != 2 * SEED_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in seed.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(seed)
}

/// The file's text.
///
/// # Errors
/// A field is not what it must be; nothing of such an identity may be put in place.
pub fn render(identity: &Identity) -> Result<String, IdentityError> {
    let Identity { vmid, family, ip, prefix, gateway, mac, hostname, ticket, clock_ns: _, seed: _ } =
        identity;
    let is_uuid = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let name_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if hostname.is_empty() || hostname.len() > HOSTNAME_MAX_BYTES || !hostname.bytes().all(name_byte) {
        return Err(IdentityError::Hostname(hostname.clone()));
    }
    if parse_mac(mac).is_none() {
        return Err(IdentityError::Mac(mac.clone()));
    }
    if *prefix > 32 {
        return Err(IdentityError::Prefix(*prefix));
    }
    if !is_uuid(family) {
        return Err(IdentityError::Family(family.clone()));
    }
    if !is_uuid(ticket) {
        return Err(IdentityError::Ticket(ticket.clone()));
    }
    let text = format!(
        "vmid={vmid}\nip={ip}\nprefix={prefix}\ngateway={gateway}\nmac={mac}\nhostname={hostname}\nfamily={family}\n\
         ticket={ticket}\n"
    );
    if text.len() > IDENTITY_MAX_BYTES {
        return Err(IdentityError::Size(text.len()));
    }
    Ok(text)
}

/// The value of `key` in the file's text.
#[must_use]
pub fn lookup<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// /etc/hosts with the guest's own name in it, everything else kept.
#[must_use]
pub fn render_hosts(old: &str, identity: &Identity) -> String {
    let mut text = String::with_capacity(old.len() + 128);
    for line in old.lines().filter(|line| !line.ends_with(HOSTS_MARK)) {
        text.push_str(line);
        text.push('\n');
    }
    if text.is_empty() {
        text.push_str("127.0.0.1 localhost\n");
    }
    // Writing to a String does not fail.
    if writeln!(text, "{} {} {HOSTS_MARK}", identity.ip, identity.hostname).is_err() {
        text.clear();
    }
    text
}

/// Writes a file whole: readers see the old or the new text. With a directory in RAM there is
/// nothing to sync. Returns the file.
///
/// # Errors
/// The kernel's; the old file stays.
pub fn replace(path: &Path, text: &str) -> Result<OwnedFd, IdentityError> {
    let error = |source| IdentityError::Replace { path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::open(&temporary, flags, Mode::from_raw_mode(0o644)).map_err(error)?;
    let written = rustix::io::write(&file, text.as_bytes()).map_err(error)?;
    if written != text.len() {
        return Err(error(Errno::NOSPC));
    }
    rustix::fs::rename(&temporary, path).map_err(error)?;
    Ok(file)
}

/// Changes a small file in place, for when nobody else runs who could see half of it: two system
/// calls less, and no new inode. A missing file is made.
///
/// # Errors
/// As for [`read_small`] and [`replace`].
pub fn edit_in_place(
    path: &Path,
    max_bytes: usize,
    edit: impl FnOnce(&str) -> String,
) -> Result<(), IdentityError> {
    let error = |source| IdentityError::Replace { path: path.to_owned(), source };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map_err(error)?;
    let mut old = Vec::new();
    // A file gives all that is asked for, or all that it has: there is no need to ask again.
    if append(&file, &mut old, max_bytes + 1).map_err(error)? > max_bytes {
        return Err(error(Errno::FBIG));
    }
    let old = String::from_utf8(old).map_err(|_| error(Errno::ILSEQ))?;
    let new = edit(&old);
    if new == old {
        return Ok(());
    }
    if rustix::io::pwrite(&file, new.as_bytes(), 0).map_err(error)? != new.len() {
        return Err(error(Errno::NOSPC));
    }
    if new.len() < old.len() {
        rustix::fs::ftruncate(&file, new.len() as u64).map_err(error)?;
    }
    Ok(())
}

/// The identity's file.
#[derive(Debug)]
pub struct IdentityFile {
    path: PathBuf,
    written: Option<(OwnedFd, usize)>,
}

impl IdentityFile {
    /// The file at `path`, which need not be there.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Writes it. While nobody else runs it is one system call; what is shorter than before is
    /// filled up with empty lines.
    ///
    /// # Errors
    /// As for [`replace`].
    pub fn write(&mut self, mut text: String, nobody_else_runs: bool) -> Result<(), IdentityError> {
        match &mut self.written {
            Some((file, length)) if nobody_else_runs => {
                text.extend(std::iter::repeat_n('\n', length.saturating_sub(text.len())));
                let error = |source| IdentityError::Replace { path: self.path.clone(), source };
                if rustix::io::pwrite(file, text.as_bytes(), 0).map_err(error)? != text.len() {
                    return Err(error(Errno::NOSPC));
                }
                *length = text.len();
            }
            written => *written = Some((replace(&self.path, &text)?, text.len())),
        }
        Ok(())
    }
}

/// Reads a small file whole; a missing one is empty.
///
/// # Errors
/// The kernel's; FBIG when it is longer than `max_bytes`; ILSEQ when it is not UTF-8.
pub fn read_small(path: &Path, max_bytes: usize) -> Result<String, Errno> {
    let file = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(String::new()),
        Err(e) => return Err(e),
    };
    let mut text = Vec::new();
    while append(&file, &mut text, CHUNK_BYTES)? > 0 {
        if text.len() > max_bytes {
            return Err(Errno::FBIG);
        }
    }
    String::from_utf8(text).map_err(|_| Errno::ILSEQ)
}

#[cfg(test)]
#[path = "identity_test.rs"]
mod tests;
