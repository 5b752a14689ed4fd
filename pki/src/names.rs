//! Names and addresses for certificates.

use std::{fmt, net::IpAddr, str::FromStr};

/// Longest name, as DNS has it.
const NAME_MAX: usize = 253;
/// Longest part of a name between two dots.
const LABEL_MAX: usize = 63;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a name of letters, digits, - and dots, for example host-1.lan, or for --address an IP address, not {0:?}"
)]
pub struct NameError(String);

/// The name of a host or of an operator, which is a host name in form. It is the name of a folder,
/// too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_label = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label.bytes().all(is_inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_name = text.len() <= NAME_MAX && text.split('.').all(is_label);
        if is_name { Ok(Self(text.to_owned())) } else { Err(NameError(text.to_owned())) }
    }
}

/// By which a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A name.
    Name(Name),
    /// A number.
    Ip(IpAddr),
}

impl FromStr for Address {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse() {
            Ok(ip) => Ok(Self::Ip(ip)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_hosts_and_never_paths() {
        for right in ["a", "host-1", "host-1.lan", "10.0.0.1"] {
            assert_eq!(right.parse::<Name>().unwrap().to_string(), right);
        }
        let long = "a".repeat(64);
        let longer = ["abcdefgh"; 30].join(".");
        for wrong in
            ["", ".", "..", "a/b", "../a", "a..b", "-a", "a-", "a b", "ä", "a\n", "a:b", &long, &longer]
        {
            assert!(wrong.parse::<Name>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn addresses_are_names_or_numbers() {
        assert_eq!("::1".parse(), Ok(Address::Ip(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]))));
        assert_eq!("10.0.0.1".parse(), Ok(Address::Ip(IpAddr::from([10, 0, 0, 1]))));
        assert_eq!("a.b".parse::<Address>().unwrap().to_string(), "a.b");
        assert!("10.0.0.1:80".parse::<Address>().is_err() && "".parse::<Address>().is_err());
    }
}
