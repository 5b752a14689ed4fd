//! The error codes of calls. The number in a [`CallError`](crate::link::CallError) is an errno of
//! Linux, and also `gc`'s exit code.
//!
//! The number says whether the caller should retry. After 11 and 16 a retry may succeed, because
//! what is missing now may be available later. After all other numbers it does not help. [`VERBS`]
//! lists the numbers of each verb. Three tests enforce it: that of the host (each reason of the
//! scheduler for each verb), that of the help texts and the man page, and that of `README.md`.

/// A verb, and the error codes that it may return in addition to [`COMMON`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verb {
    /// The verb's name.
    pub name: &'static str,
    /// The errno numbers that it may return, in order.
    pub codes: &'static [i32],
}

/// The error codes that any call may return: 5 (EIO) the host failed, 11 (EAGAIN) not possible now,
/// 22 (EINVAL) wrong use, 90 (EMSGSIZE) the call or its answer does not fit on a line, 107
/// (ENOTCONN) no connection to the host, 111 (ECONNREFUSED) the host's `vmmd` is not running.
pub const COMMON: &[i32] = &[5, 11, 22, 90, 107, 111];

/// All verbs of programs.
///
/// - 2 (ENOENT): there is no such ticket, or the data that its clone left is no longer kept.
/// - 3 (ESRCH): there is no such clone, or this VM does not belong to the ticket.
/// - 10 (ECHILD): nothing was cloned with the ticket, or another VM did it.
/// - 13 (EACCES): the ticket belongs to another family.
/// - 16 (EBUSY): there is no room now.
/// - 18 (EXDEV): the ticket has no VMs for this host, too few, or is for another VM's clones.
/// - 27 (EFBIG): there is too much data.
/// - 28 (ENOSPC): no more VMs or vmids are available.
/// - 35 (EDEADLK): a hook tried to clone.
/// - 62 (ETIME): the time limit has passed.
/// - 71 (EPROTO): the host's answer is invalid.
/// - 110 (ETIMEDOUT): a process does not stop.
/// - 116 (ESTALE): the ticket was used, released, expired or fenced.
/// - 121 (EREMOTEIO): the other hosts of the ticket did not make the clones.
/// - 122 (EDQUOT): there are too many tickets.
/// - 125 (ECANCELED): the pre-clone hook failed, or the program that requested the clone has gone.
pub const VERBS: &[Verb] = &[
    Verb { name: "vmid", codes: &[] },
    Verb { name: "my-ip", codes: &[] },
    Verb { name: "ismaster", codes: &[] },
    Verb { name: "list", codes: &[] },
    Verb { name: "clone", codes: &[2, 13, 16, 18, 28, 35, 71, 110, 116, 121, 122, 125] },
    Verb { name: "rt", codes: &[16, 122] },
    Verb { name: "lt", codes: &[] },
    Verb { name: "ticket", codes: &[2, 13] },
    Verb { name: "sync", codes: &[2, 3, 10, 13, 62, 116] },
    Verb { name: "leave-data", codes: &[27] },
    Verb { name: "leave", codes: &[2, 3, 10, 13, 27] },
    Verb { name: "join", codes: &[2, 10, 13, 62, 116] },
    Verb { name: "join-data", codes: &[2, 3, 13] },
    Verb { name: "kill", codes: &[2, 3, 13] },
];

/// The verb of that name.
#[must_use]
pub fn verb(name: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| verb.name == name)
}

impl Verb {
    /// Whether it may return this number.
    #[must_use]
    pub fn may_have(&self, code: i32) -> bool {
        self.codes.contains(&code) || COMMON.contains(&code)
    }
}
