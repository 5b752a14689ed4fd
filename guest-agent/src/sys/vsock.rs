//! Vsock sockets (rustix has the family, not the address).

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

struct Address(libc::sockaddr_vm);

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        // SAFETY: sockaddr_vm is integers only, for which all bits zero is a value.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        #[allow(clippy::cast_possible_truncation, reason = "AF_VSOCK is 40")]
        {
            address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        }
        address.svm_cid = cid;
        address.svm_port = port;
        Self(address)
    }
}

// SAFETY: `f` gets a pointer to a whole sockaddr_vm, whose length fits, for the time of the call.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        const LENGTH: SocketAddrLen = size_of::<libc::sockaddr_vm>() as SocketAddrLen;
        f((&raw const self.0).cast(), LENGTH)
    }
}

/// A non-blocking socket.
///
/// # Errors
/// The kernel's; EAFNOSUPPORT without vsock in the kernel.
pub fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?)
}

/// Gives a socket `port` of this machine.
///
/// # Errors
/// The kernel's: another socket has it, or it is below 1024 and the program lacks
/// CAP_NET_BIND_SERVICE.
pub fn bind(socket: impl AsFd, port: u32) -> io::Result<()> {
    Ok(rustix::net::bind(socket, &Address::new(libc::VMADDR_CID_ANY, port))?)
}

/// A non-blocking listener on `port` of this machine.
///
/// # Errors
/// The kernel's; EAFNOSUPPORT without vsock in the kernel.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let fd = socket()?;
    bind(&fd, port)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// Connects such a socket to `port` of `cid`. The connection is made or under way: it is writable
/// when that is decided.
///
/// # Errors
/// The kernel's.
pub fn connect(socket: OwnedFd, cid: u32, port: u32) -> io::Result<OwnedFd> {
    match rustix::net::connect(&socket, &Address::new(cid, port)) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}
