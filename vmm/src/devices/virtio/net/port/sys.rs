//! The ioctls of a tap.
#![allow(unsafe_code, reason = "ioctls that no crate wraps")]

use super::Offloads;
use patina_jail::ioctl::{WRITE, request};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;

/// `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: libc::c_ulong = request(WRITE, b'T', 208, size_of::<libc::c_uint>());
/// `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: libc::c_ulong = request(WRITE, b'T', 216, size_of::<libc::c_int>());
const _: () = assert!(TUNSETOFFLOAD == 0x4004_54d0 && TUNSETVNETHDRSZ == 0x4004_54d8);

/// `TUNSETVNETHDRSZ`: the size of the header in front of each frame.
pub fn set_header_bytes(tap: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the request reads one c_int (asserted above) through the pointer, which is valid for
    // the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) })
}

/// `TUNSETOFFLOAD`: the offloads that the reader of the tap accepts.
pub fn set_offloads(tap: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
    let mut flags = 0;
    if offloads.checksum {
        flags |= TUN_F_CSUM;
        if offloads.tso4 {
            flags |= TUN_F_TSO4;
        }
    }
    // SAFETY: the request takes its flags by value and no pointer.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, flags) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a tap as `vmmd` does.
#[cfg(test)]
pub fn make_tap_for_test(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    const { assert!(size_of::<libc::ifreq>() == 40) };
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the request reads and writes a struct ifreq, which is the 40 bytes of the buffer.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) })
}
