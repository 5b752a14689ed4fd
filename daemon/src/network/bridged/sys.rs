//! The policy of the chain FORWARD of the older iptables, which is not nftables:
//! linux/netfilter_ipv4/ip_tables.h.
#![allow(unsafe_code, reason = "getsockopt of iptables")]

use std::{io, os::fd::AsRawFd as _};

const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const NAME_BYTES: usize = 32;
/// Of `struct ipt_getinfo`: the table's name, the valid hooks, an offset for each hook, an offset
/// for each policy, two counts.
const INFO_BYTES: usize = 84;
const POLICIES_AT: usize = NAME_BYTES + 4 + 5 * 4;
const SIZE_AT: usize = INFO_BYTES - 4;
/// Where entries begin behind `struct ipt_get_entries`.
const ENTRIES_AT: usize = 40;
/// NF_INET_FORWARD.
const FORWARD: usize = 2;
/// Of `struct ipt_entry`: where its target is named; and of a standard target, where its verdict
/// is.
const TARGET_OFFSET_AT: usize = 88;
const VERDICT_AT: usize = 32;
/// NF_DROP as a verdict.
const DROP: i32 = -1;
/// A table is not larger than that.
const ENTRIES_MAX_BYTES: usize = 64 << 20;

/// Whether the policy is DROP. The table must be there already.
pub fn legacy_forward_drops() -> io::Result<bool> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::RAW,
        Some(rustix::net::ipproto::RAW),
    )?;
    let mut info = [0; INFO_BYTES];
    info[..6].copy_from_slice(b"filter");
    get(socket.as_raw_fd(), GET_INFO, &mut info)?;
    let at = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|bytes| i32::from_ne_bytes(*bytes))
    };
    let short = || io::Error::from(io::ErrorKind::InvalidData);
    let size = at(&info, SIZE_AT).and_then(|size| usize::try_from(size).ok()).ok_or_else(short)?;
    let policy = at(&info, POLICIES_AT + 4 * FORWARD).and_then(|at| usize::try_from(at).ok());
    let policy = ENTRIES_AT + policy.ok_or_else(short)?;
    if size > ENTRIES_MAX_BYTES {
        return Err(short());
    }
    let mut entries = vec![0; ENTRIES_AT + size];
    entries[..6].copy_from_slice(b"filter");
    entries[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&info[SIZE_AT..]);
    get(socket.as_raw_fd(), GET_ENTRIES, &mut entries)?;
    let target = entries.get(policy + TARGET_OFFSET_AT..).and_then(<[u8]>::first_chunk::<2>);
    let target = policy + usize::from(u16::from_ne_bytes(*target.ok_or_else(short)?));
    Ok(at(&entries, target + VERDICT_AT) == Some(DROP))
}

fn get(socket: libc::c_int, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, which are there.
    let result = unsafe {
        libc::getsockopt(socket, libc::IPPROTO_IP, option, bytes.as_mut_ptr().cast(), &raw mut length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
