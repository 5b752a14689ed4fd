//! Creates taps (the only ioctl of this crate), and sets those properties of an interface that have
//! a file.
#![allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper in the crates that the workspace uses")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

const _: () = assert!(size_of::<libc::ifreq>() == 40 && libc::TUNSETIFF == 0x4004_54ca);

/// Makes the tap `name` (at most 15 bytes): frames without packet information, each with a
/// virtio-net header, non-blocking. It lives as long as a descriptor of it is open. For a `%d` in
/// the name the kernel puts the first number that is free. Returns the tap's name, too.
///
/// # Errors
/// No rights, no `/dev/net/tun`, or an interface of that name.
pub fn create_tap(name: &str) -> io::Result<(OwnedFd, String)> {
    let tun: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // TUN_EXCL: an interface of that name, somebody else's, is an error and not shared.
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL)
                as libc::c_short,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface's name has at most 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: TUNSETIFF reads and writes one ifreq; `request` is one, initialised whole, and
    // outlives the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = request.ifr_name.iter().map(|byte| byte.cast_unsigned());
    let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    Ok((tun.into(), String::from_utf8_lossy(&name).into_owned()))
}

/// Keeps the kernel from speaking IPv6 on an interface by itself: families have IPv4 addresses, and
/// a guest would wake up for every announcement.
///
/// # Errors
/// The kernel refuses. A kernel without IPv6 is not an error.
pub fn without_ipv6(name: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
