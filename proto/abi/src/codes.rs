//! Why calls are refused: the number in a [`CallError`](crate::link::CallError) is an errno of Linux, and `gc`'s exit code.
//!
//! A number says what the caller can do: 11 and 16 are worth another try, as what is missing now may be there later; all others are not.
//! [`VERBS`] has what each verb may be refused with, and three tests hold it: the host's (each reason of the scheduler for each verb),
//! the help texts' and man page's, and that of `README.md`.

/// A verb, and what it may be refused with beside [`COMMON`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verb {
    /// The verb's name.
    pub name: &'static str,
    /// The errno numbers that it may be refused with, in order.
    pub codes: &'static [i32],
}

/// What any call may be refused with: 5 (EIO) the host failed, 11 (EAGAIN) not now, 22 (EINVAL) wrong use, 90 (EMSGSIZE) the call or its answer
/// does not fit on a line, 107 (ENOTCONN) no host, 111 (ECONNREFUSED) no `vmmd` there.
pub const COMMON: &[i32] = &[5, 11, 22, 90, 107, 111];

/// All verbs of programs.
///
/// 2 (ENOENT) no such ticket, or what its clone left is not kept any more; 3 (ESRCH) no such clone, or this VM is none of the ticket's; 10 (ECHILD) nothing was cloned with the ticket,
/// or not by this VM; 13 (EACCES) another family's ticket; 16 (EBUSY) no room now; 18 (EXDEV) the ticket's VMs are on another host; 27
/// (EFBIG) too much data; 28 (ENOSPC) no more VMs or vmids; 35 (EDEADLK) a hook clones; 62 (ETIME) not in time; 71 (EPROTO) the host talks nonsense; 110 (ETIMEDOUT)
/// a process does not stop; 116 (ESTALE) the ticket was used, released, expired or fenced; 122 (EDQUOT) too many tickets; 125
/// (ECANCELED) the pre-clone hook failed, or nobody waited for the clone any more.
pub const VERBS: &[Verb] = &[
    Verb { name: "vmid", codes: &[] },
    Verb { name: "my-ip", codes: &[] },
    Verb { name: "ismaster", codes: &[] },
    Verb { name: "list", codes: &[] },
    Verb { name: "clone", codes: &[2, 13, 16, 18, 28, 35, 71, 110, 116, 122, 125] },
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
    /// Whether it may be refused with this number.
    #[must_use]
    pub fn may_have(&self, code: i32) -> bool {
        self.codes.contains(&code) || COMMON.contains(&code)
    }
}
