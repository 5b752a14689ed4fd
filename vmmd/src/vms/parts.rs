//! What a vmm is started with: its configuration and its descriptors.

use crate::{
    clock::unix_ms,
    plan::address::FAMILY_PREFIX,
    process::{
        spawn::{Parts, Start},
        urgency::Urgency,
    },
    store::record::Record,
};
use patina_abi::link::Identity;
use patina_control::config::{Member, Neighbours};
use std::{fs::File, os::fd::OwnedFd};

/// What the vmm of `record` needs, out of `/dev/kvm`, the root disk and a tap, with who else is on
/// its network.
pub(super) fn parts(
    record: &Record,
    start: Start,
    (kvm, rootfs, tap): (File, File, OwnedFd),
    neighbours: Neighbours,
    urgency: Urgency,
) -> Parts {
    let Record { vcpus, memory_mib, .. } = *record;
    let member = Some(member(record, neighbours));
    Parts { kvm, start, rootfs, tap, vcpus, memory_mib, member, urgency }
}

/// Who the VM of `record` is.
pub(super) fn member(record: &Record, neighbours: Neighbours) -> Member {
    let net = &record.net;
    let identity = Identity {
        vmid: record.vmid,
        family: record.family.to_string(),
        // A vmid is taken only when its address is within the family's network.
        ip: net.ip(record.vmid).unwrap_or(net.base),
        prefix: FAMILY_PREFIX,
        gateway: net.gateway(),
        mac: net.mac(record.vmid),
        hostname: record.name.clone(),
        // The vmm sets the clock as it sends the identity.
        clock_ns: unix_ms().saturating_mul(1_000_000),
        // The vmm makes one for each identity that it sends.
        seed: String::new(),
        // A clone gets it with its generation.
        ticket: String::new(),
    };
    Member { identity, neighbours }
}
