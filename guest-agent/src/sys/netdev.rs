//! A network card's MAC address, through the old ioctl. Over rtnetlink the kernel would describe
//! the whole card to every listener, which costs four times as much.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const _: () = assert!(size_of::<libc::ifreq>() == 40 && libc::SIOCSIFHWADDR == 0x8924);

/// Sets the MAC address of an interface; `socket` is any socket.
///
/// # Errors
/// The kernel's; EBUSY when the driver wants the interface down for that.
pub fn set_mac(socket: BorrowedFd<'_>, interface: &str, mac: [u8; 6]) -> io::Result<()> {
    // SAFETY: ifreq is integers, byte arrays and a raw pointer; all bits zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: sockaddr is integers and bytes; all bits zero is a value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: SIOCSIFHWADDR reads an ifreq, whose size is asserted above.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR as _, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
