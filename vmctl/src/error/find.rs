//! A VM that was looked for on all hosts.

/// Why a VM was not found among all hosts. Each host that did not answer is reported on its own.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No host has it.
    #[error("find VM {name}: none of the hosts has it ({asked}); `vmctl ls --all-hosts` lists all VMs")]
    None {
        /// The VM.
        name: String,
        /// The hosts that were asked.
        asked: String,
    },
    /// No host that answers has it.
    #[error(
        "find VM {name}: these hosts have no such VM: {asked}; these did not answer: {silent}; try again when they do"
    )]
    PerhapsNone {
        /// The VM.
        name: String,
        /// The hosts that were asked.
        asked: String,
        /// Those that did not answer.
        silent: String,
        /// The exit code of the first that did not answer.
        code: u8,
    },
    /// Several hosts have a VM of this name.
    #[error("find VM {name}: several hosts have a VM of this name; name one of them: {places}")]
    Several {
        /// The VM.
        name: String,
        /// The hosts, with their addresses.
        places: String,
    },
    /// A host has it, and another one, which does not answer, may have one of its name.
    #[error(
        "find VM {name}: host {host} has it, but host {silent} did not answer and may have one of this name; name the host: --host {address}"
    )]
    PerhapsSeveral {
        /// The VM.
        name: String,
        /// The host that has it.
        host: String,
        /// Its address.
        address: String,
        /// A host that did not answer.
        silent: String,
        /// The exit code of that one.
        code: u8,
    },
}

impl FindError {
    /// The exit code, as `vmctl --help` documents it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::None { .. } => 3,
            Self::Several { .. } => 5,
            Self::PerhapsNone { code, .. } | Self::PerhapsSeveral { code, .. } => *code,
        }
    }
}
