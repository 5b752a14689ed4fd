//! A network interface's settings, by the old ioctls: one call a setting, nothing to parse.

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::mem::zeroed;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

const _: () = assert!(size_of::<libc::ifreq>() == 40);
const _: () = assert!(size_of::<libc::rtentry>() == 120);

/// The interface is up and does what Ethernet does.
const ETHERNET_UP: libc::c_int = libc::IFF_UP | libc::IFF_BROADCAST | libc::IFF_MULTICAST;

/// A socket to configure interfaces with.
#[derive(Debug)]
pub struct NetConfig(OwnedFd);

fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is integers, byte arrays and a raw pointer; all bits zero is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

#[allow(clippy::cast_possible_truncation, reason = "AF_INET is 2")]
fn inet(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is integers and bytes; all bits zero is a value.
    let mut out: libc::sockaddr = unsafe { zeroed() };
    out.sa_family = libc::AF_INET as libc::sa_family_t;
    // sockaddr_in: two bytes of port, then the address, in network order.
    for (to, from) in out.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    out
}

impl NetConfig {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        Ok(Self(rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?))
    }

    fn ioctl<T>(&self, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: every caller passes a number whose argument is a `T` (ifreq or rtentry, sizes asserted
        // above), which the kernel reads and writes within its size only.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), number as _, std::ptr::from_mut(argument)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The interface's MAC address.
    ///
    /// # Errors
    /// ENODEV without such an interface.
    pub fn mac(&self, interface: &str) -> io::Result<[u8; 6]> {
        let mut request = request(interface)?;
        self.ioctl(libc::SIOCGIFHWADDR, &mut request)?;
        // SAFETY: SIOCGIFHWADDR fills this field, which is bytes whatever was written.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(data) {
            [*to] = from.to_ne_bytes();
        }
        Ok(mac)
    }

    /// Sets the MAC address.
    ///
    /// # Errors
    /// EBUSY when the driver wants the interface down for that.
    pub fn set_mac(&self, interface: &str, mac: [u8; 6]) -> io::Result<()> {
        let mut request = request(interface)?;
        // SAFETY: sockaddr is integers and bytes; all bits zero is a value.
        let mut address: libc::sockaddr = unsafe { zeroed() };
        address.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_hwaddr = address;
        self.ioctl(libc::SIOCSIFHWADDR, &mut request)
    }

    /// Replaces the interface's first address and its netmask.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_address(&self, interface: &str, address: Ipv4Addr, netmask: Ipv4Addr) -> io::Result<()> {
        let mut request = request(interface)?;
        request.ifr_ifru.ifru_addr = inet(address);
        self.ioctl(libc::SIOCSIFADDR, &mut request)?;
        request.ifr_ifru.ifru_netmask = inet(netmask);
        self.ioctl(libc::SIOCSIFNETMASK, &mut request)
    }

    /// Takes an interface up or down.
    ///
    /// # Errors
    /// ENODEV without such an interface.
    pub fn set_up(&self, interface: &str, up: bool) -> io::Result<()> {
        let mut request = request(interface)?;
        #[allow(clippy::cast_possible_truncation, reason = "the flags are below 0x8000")]
        let flags = if up { ETHERNET_UP as libc::c_short } else { 0 };
        request.ifr_ifru.ifru_flags = flags;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Adds the default route.
    ///
    /// # Errors
    /// EEXIST when it is there; ENETUNREACH when the gateway is on no network of this machine.
    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut route = default_route(gateway);
        self.ioctl(libc::SIOCADDRT, &mut route)
    }

    /// Removes the default route through `gateway`.
    ///
    /// # Errors
    /// ESRCH when it is not there.
    pub fn delete_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut route = default_route(gateway);
        self.ioctl(libc::SIOCDELRT, &mut route)
    }
}

fn default_route(gateway: Ipv4Addr) -> libc::rtentry {
    // SAFETY: rtentry is integers, bytes and raw pointers; all bits zero is a value (no device name).
    let mut route: libc::rtentry = unsafe { zeroed() };
    route.rt_dst = inet(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = inet(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = inet(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    route
}
