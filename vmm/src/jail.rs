//! Drops the process's privileges before the guest runs. Only the open descriptors give it access
//! to anything then. [`patina_jail`] has the jail; here is what a running VM needs in it.
//!
//! No socket can be made except a pair. What ends the process with SIGSYS, `vmmd` records as the
//! VM's end.

pub use patina_jail::{JailError, prime};

use patina_jail::{Ioctl, userfaultfd};

/// Reading, writing and waiting on what is open.
const INPUT_OUTPUT: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_getrandom,
    libc::SYS_timerfd_settime,
    libc::SYS_memfd_create,
];
/// Unix sockets that are there already, and pairs.
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_socketpair,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
];
/// The type byte of KVM's ioctls.
const KVM: u8 = 0xae;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// KVM's own; a tap's offloads; looking at and tracking one's own pages; non-blocking.
const IOCTLS: &[Ioctl] = &[
    Ioctl::Type(KVM),
    Ioctl::Number(TUNSETOFFLOAD),
    Ioctl::Number(crate::sys::pagemap::PAGEMAP_SCAN),
    Ioctl::Number(userfaultfd::UFFDIO_REGISTER),
    Ioctl::Number(userfaultfd::UFFDIO_UNREGISTER),
    Ioctl::Number(userfaultfd::UFFDIO_WRITEPROTECT),
    Ioctl::Number(libc::FIONBIO),
];

/// Enters the jail, for good.
///
/// # Errors
/// The kernel refuses a part. The process must not continue then.
pub fn enter() -> Result<(), JailError> {
    patina_jail::enter(&[INPUT_OUTPUT, SOCKETS], IOCTLS)
}
