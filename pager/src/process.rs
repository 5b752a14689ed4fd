//! A `pager` process from its start, and its jail.

use crate::engine::Engine;
use crate::server::Server;
use crate::sys::interrupt;
use patina_control::best_effort;
use patina_jail::sys::inherit::{InheritError, Inherited};
use patina_jail::{Ioctl, JailError, userfaultfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;

/// Why the pager ends.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The socket is missing.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// Something that it needs cannot be made.
    #[error("make {0}")]
    Make(&'static str, #[source] io::Error),
    /// It cannot give its privileges up.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The sockets cannot be served.
    #[error("serve the control socket")]
    Serve(#[source] io::Error),
}

/// Reading, writing and waiting on what is open.
const INPUT_OUTPUT: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_preadv2,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_getrandom,
    // What VMs have demanded goes out in a memfd.
    // What VMs have demanded goes out in a memfd.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_pwrite64,
    // A thread makes itself less urgent than others.
    libc::SYS_setpriority,
];
/// Unix sockets that are there already.
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_getsockopt,
    // Of a peer that is forgotten.
    libc::SYS_shutdown,
];
/// Those that answer faults in the memory of VMs, and non-blocking.
const IOCTLS: &[Ioctl] = &[
    Ioctl::Number(userfaultfd::UFFDIO_CONTINUE),
    Ioctl::Number(userfaultfd::UFFDIO_ZEROPAGE),
    Ioctl::Number(userfaultfd::UFFDIO_COPY),
    Ioctl::Number(userfaultfd::UFFDIO_POISON),
    Ioctl::Number(userfaultfd::UFFDIO_WAKE),
    Ioctl::Number(userfaultfd::UFFDIO_UNREGISTER),
    Ioctl::Number(libc::FIONBIO),
];

/// Serves the socket in descriptor `control_fd`. Returns on an error only.
///
/// # Errors
/// See [`ProcessError`].
pub fn run(mut inherited: Inherited, control_fd: RawFd) -> Result<(), ProcessError> {
    let made = |what| move |error| ProcessError::Make(what, error);
    let listener = UnixListener::from(inherited.take(control_fd)?);
    abort_on_panic();
    raise_limit();
    interrupt::prepare().map_err(made("a signal handler"))?;
    let (engine, inbox) = Engine::new().map_err(made("an epoll and an eventfd"))?;
    let mut server = Server::new(engine.clone(), inbox, listener).map_err(made("an epoll"))?;
    patina_jail::prime().map_err(made("a thread"))?;
    patina_jail::enter(&[INPUT_OUTPUT, SOCKETS], IOCTLS)?;
    engine.start().map_err(made("threads"))?;
    server.run().map_err(ProcessError::Serve)
}

/// Each VM has two descriptors here, and each layer as many.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    best_effort(
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }),
        "with fewer, VMs that are too many are refused",
    );
}

/// After a failure in one place the rest cannot be trusted, and threads that wait for it would wait
/// forever. Another pager takes over.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}
