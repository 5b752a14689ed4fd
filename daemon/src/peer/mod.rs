//! Who is at the other end of a connection.

mod sys;

use crate::{
    chain,
    tls::{Identity, Role},
};
use std::{fmt, fs};
use tokio::net::UnixStream;
use uuid::Uuid;

/// Members of this group may use the daemons' Unix sockets as root may, where it exists.
pub const GROUP: &str = "patina";

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Anybody: TCP with `--insecure`.
    Anybody,
    /// On a Unix socket: root, the daemon's own user, or a member of the group [`GROUP`].
    Local {
        /// The user.
        uid: u32,
    },
    /// Another user of this machine.
    Stranger {
        /// The user.
        uid: u32,
    },
    /// By TLS.
    Certified(Identity),
}

impl Peer {
    /// The one on a Unix socket, as the kernel knows it since it connected. One of whom the kernel
    /// says nothing is a stranger.
    #[must_use]
    pub fn of(stream: &UnixStream) -> Self {
        let credentials = match stream.peer_cred() {
            Ok(credentials) => credentials,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "ask who has connected");
                return Self::Stranger { uid: u32::MAX };
            }
        };
        let uid = credentials.uid();
        let is_us = uid == 0 || uid == rustix::process::geteuid().as_raw();
        let is_member = || {
            group().is_some_and(|group| {
                credentials.gid() == group || sys::groups(stream).is_ok_and(|groups| groups.contains(&group))
            })
        };
        if is_us || is_member() { Self::Local { uid } } else { Self::Stranger { uid } }
    }

    /// Whether it may speak for a host. Who is on this machine and may do everything may do that
    /// too: a vmmd on a Unix socket.
    #[must_use]
    pub fn is_host(&self, host: Uuid) -> bool {
        match self {
            Self::Anybody | Self::Local { .. } => true,
            Self::Certified(Identity::Host { id }) => *id == host,
            Self::Stranger { .. } | Self::Certified(Identity::Operator { .. }) => false,
        }
    }

    /// What it may do of what operators may.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Anybody | Self::Local { .. } => Some(Role::Admin),
            Self::Certified(Identity::Operator { role, .. }) => Some(*role),
            Self::Stranger { .. } | Self::Certified(Identity::Host { .. }) => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => f.write_str("anybody"),
            Self::Local { uid } | Self::Stranger { uid } => write!(f, "user {uid}"),
            Self::Certified(identity) => identity.fmt(f),
        }
    }
}

/// The number of the group [`GROUP`], as `/etc/group` says.
#[must_use]
pub fn group() -> Option<u32> {
    find_group(&fs::read_to_string("/etc/group").ok()?)
}

fn find_group(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_ours = fields.next() == Some(GROUP);
        is_ours.then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_by_its_whole_name() {
        assert_eq!(find_group("root:x:0:\npatina:x:987:ada,bob\n"), Some(987));
        assert_eq!(find_group("patinas:x:1:\nx:patina:2:\n"), None);
        assert_eq!(find_group("patina:x:-1:\npatina\n"), None);
    }

    #[tokio::test]
    async fn a_peer_on_a_socket_is_the_user_that_the_kernel_names() {
        let (near, far) = UnixStream::pair().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!((Peer::of(&near), Peer::of(&far)), (Peer::Local { uid }, Peer::Local { uid }));
        let groups = sys::groups(&near).unwrap();
        let own = rustix::process::getgroups().unwrap();
        assert_eq!(groups, own.iter().map(|group| group.as_raw()).collect::<Vec<_>>());
    }
}
