//! A filter around a vmm: the kernel as it was before Linux 6.4.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;

/// The filter, for a process between fork and exec: making it allocates, applying it does not.
///
/// # Errors
/// Never, in fact.
pub fn filter() -> std::io::Result<BpfProgram> {
    const PR_GET_AUXV: u64 = 0x4155_5856;
    let hidden = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, PR_GET_AUXV)
        .and_then(|condition| SeccompRule::new(vec![condition]));
    let rules = BTreeMap::from([(libc::SYS_prctl, vec![hidden.map_err(std::io::Error::other)?])]);
    let refuse = SeccompAction::Errno(libc::EINVAL as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64);
    filter.and_then(TryInto::try_into).map_err(std::io::Error::other)
}

/// Applies it to this thread.
///
/// # Errors
/// The kernel takes no filter.
pub fn apply(filter: &BpfProgram) -> std::io::Result<()> {
    seccompiler::apply_filter(filter).map_err(|_| std::io::Error::from_raw_os_error(libc::EPERM))
}
