//! The host's side of a network card: a tap.

mod sys;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Why a card's port could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The tap refused the size of the virtio header.
    #[error("set the header size of the tap; it must be a tap with IFF_VNET_HDR")]
    Header(#[source] io::Error),
    /// The tap could not be made non-blocking.
    #[error("make the tap non-blocking")]
    NonBlocking(#[source] io::Error),
    /// The kernel gave no event descriptor.
    #[error("create an event for the gate")]
    Event(#[source] io::Error),
}

/// The offloads that the guest accepts for frames from the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames without a checksum.
    pub checksum: bool,
    /// TCP/IPv4 segments longer than a frame.
    pub tso4: bool,
}

/// Reads and writes whole frames, each behind a 12-byte virtio header, without blocking.
pub trait FramePort: Send {
    /// The descriptor to read, write and watch.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Says what may be sent to the guest from now on.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;
}

/// A tap.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Takes a tap made with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    pub fn new(fd: OwnedFd) -> Result<Self, PortError> {
        sys::set_header_bytes(fd.as_fd(), super::HEADER_BYTES).map_err(PortError::Header)?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(|error| PortError::NonBlocking(error.into()))?;
        Ok(Self(fd))
    }
}

impl FramePort for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        sys::set_offloads(self.fd(), offloads)
    }
}

#[cfg(test)]
pub(super) use sys::make_tap_for_test;
