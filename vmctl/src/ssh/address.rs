//! `ssh://[USER@]HOST[:PORT][/PATH]`.

use std::{fmt, str::FromStr};

/// Where ssh connects to, and the socket there. Each part has few kinds of characters and begins
/// with none that ssh or a shell takes for something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshAddress {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    // None: where vmctl looks on the other side if nothing is said.
    path: Option<String>,
}

/// It is no such address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoAddress;

impl FromStr for SshAddress {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let rest = text.strip_prefix("ssh://").ok_or(NoAddress)?;
        let (place, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (user, place) = match place.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, place),
        };
        let (host, port) = match place.strip_prefix('[') {
            Some(place) => {
                let (host, rest) = place.split_once(']').ok_or(NoAddress)?;
                let port =
                    if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(NoAddress)?) };
                (checked(host, ".-_:%")?, port)
            }
            None => {
                let (host, port) =
                    place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port)));
                (checked(host, ".-_")?, port)
            }
        };
        let port = port.map(str::parse).transpose().map_err(|_| NoAddress)?;
        let user = user.map(|user| checked(user, ".-_+@\\")).transpose()?;
        let address = Self { user, host, port, path: None };
        if matches!(path, "" | "/") { Ok(address) } else { address.with_path(path) }
    }
}

/// Letters, digits and `others`, not with a dash first.
fn checked(text: &str, others: &str) -> Result<String, NoAddress> {
    let is_taken = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    let is_right = !text.is_empty() && !text.starts_with('-') && text.chars().all(is_taken);
    if is_right { Ok(text.to_owned()) } else { Err(NoAddress) }
}

impl fmt::Display for SshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?
        } else {
            f.write_str(&self.host)?
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(self.path.as_deref().unwrap_or_default())
    }
}

impl SshAddress {
    /// Another socket on the same machine.
    ///
    /// # Errors
    /// The path is not absolute, or has characters that a shell may take for something else.
    pub fn with_path(&self, path: &str) -> Result<Self, NoAddress> {
        if !path.starts_with('/') {
            return Err(NoAddress);
        }
        Ok(Self { path: Some(checked(path, "/._-+@%=,:")?), ..self.clone() })
    }

    /// The host, for people.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What ssh gets: its options, the host, and the command, which a shell there reads.
    pub fn arguments(&self) -> Vec<String> {
        // Never a terminal, whatever the configuration says: it would change bytes.
        let mut words: Vec<String> = ["-T", "-o", "ConnectTimeout=10"].map(str::to_owned).into();
        if let Some(user) = &self.user {
            words.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            words.extend(["-p".to_owned(), port.to_string()]);
        }
        words.extend(["--".to_owned(), self.host.clone(), "vmctl".to_owned()]);
        if let Some(path) = &self.path {
            words.extend(["--host".to_owned(), format!("unix:{path}")]);
        }
        words.push("dial-stdio".to_owned());
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_gets_each_part_as_a_word_of_its_own() {
        let words = |text: &str| text.parse::<SshAddress>().unwrap().arguments().join(" ");
        let start = "-T -o ConnectTimeout=10";
        assert_eq!(words("ssh://h1"), format!("{start} -- h1 vmctl dial-stdio"));
        assert_eq!(words("ssh://h1/"), words("ssh://h1"));
        assert_eq!(
            words("ssh://ada@h1.lan:2222/run/p/vmmd.sock"),
            format!("{start} -l ada -p 2222 -- h1.lan vmctl --host unix:/run/p/vmmd.sock dial-stdio")
        );
        for whole in ["ssh://h1", "ssh://ada@h1.lan:2222/run/p/vmmd.sock", "ssh://[fe80::1%eth0]:22/s"] {
            assert_eq!(whole.parse::<SshAddress>().unwrap().to_string(), whole);
        }
        assert_eq!(
            words("ssh://[fe80::1%eth0]:22"),
            format!("{start} -p 22 -- fe80::1%eth0 vmctl dial-stdio")
        );
    }

    #[test]
    fn what_ssh_or_a_shell_may_take_for_something_else_is_refused() {
        for wrong in [
            "ssh:",
            "ssh://",
            "ssh:h",
            "ssh:///s",
            "ssh://-oProxyCommand=x",
            "ssh://-h",
            "ssh://h:",
            "ssh://h:x",
            "ssh://h:70000",
            "ssh://h:1:2",
            "ssh://-l@h",
            "ssh://@h",
            "ssh://u v@h",
            "ssh://u;v@h",
            "ssh://$(x)@h",
            "ssh://h;x",
            "ssh://h x",
            "ssh://h\n",
            "ssh://[::1",
            "ssh://[::1]x",
            "ssh://[-x]",
            "ssh://h/a b",
            "ssh://h/$(x)",
            "ssh://h/a;b",
            "ssh://h/a'b",
            "ssh://h/`x`",
            "ssh://h/~",
            "ssh://h?x",
            "ssh://h/a*",
        ] {
            assert_eq!(wrong.parse::<SshAddress>(), Err(NoAddress), "{wrong}");
        }
        let right: SshAddress = "ssh://h/a".parse().unwrap();
        assert!(
            right.with_path("b").is_err()
                && right.with_path("/b c").is_err()
                && right.with_path("/b").is_ok()
        );
    }
}
