//! The address of a scheduler.

use patina_daemon::tls::Security;
use std::{fmt, path::PathBuf, str::FromStr};

/// Where a scheduler is: `unix:PATH`; `https://HOST:PORT`, by TLS; `http://HOST:PORT`, without; or
/// `tcp:HOST:PORT`, which is one or the other, as the options say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The path of a Unix socket on this machine.
    Unix(PathBuf),
    /// A TCP address, to be read as the security says.
    Tcp {
        /// The host's name or IP address.
        host: String,
        /// The TCP port.
        port: u16,
    },
    /// A TCP address, by TLS.
    Https {
        /// The host's name or IP address, which must stand in the server's certificate.
        host: String,
        /// The TCP port.
        port: u16,
    },
    /// A TCP address, without TLS.
    Http {
        /// The host's name or IP address.
        host: String,
        /// The TCP port.
        port: u16,
    },
}

/// Why a text is no [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither form.
    #[error("write unix:/PATH, tcp:HOST:PORT or https://HOST:PORT, not {0:?}")]
    Form(String),
    /// No certificates for TLS.
    #[error(
        "call the scheduler at {0}: TCP needs a certificate; name its folder with --tls-dir (`vmctl pki` makes certificates), or go without TLS with --insecure and tcp: or http://"
    )]
    NoCertificate(String),
    /// Without TLS, and nobody has said that it may be.
    #[error(
        "call the scheduler at {0}: it is without TLS; write tcp: or https:// with --tls-dir, or allow it with --insecure"
    )]
    Plain(String),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let form = || TargetError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(form()) };
        }
        let (way, rest) = ["https://", "http://", "tcp:"]
            .into_iter()
            .find_map(|way| text.strip_prefix(way).map(|rest| (way, rest)))
            .ok_or_else(form)?;
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(form)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let foreign = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'));
        let ambiguous = bare == host && host.contains(':');
        if bare.is_empty() || ambiguous || bare.contains(foreign) {
            return Err(form());
        }
        let (host, port) = (bare.to_owned(), port.parse().map_err(|_| form())?);
        Ok(match way {
            "https://" => Self::Https { host, port },
            "http://" => Self::Http { host, port },
            _ => Self::Tcp { host, port },
        })
    }
}

impl Target {
    /// With TLS or without, as the options say.
    ///
    /// # Errors
    /// It would be without TLS, and nobody has said that it may be; or there are no certificates.
    pub fn secured(self, security: &Security) -> Result<Self, TargetError> {
        match (self, security) {
            (Self::Tcp { host, port } | Self::Https { host, port }, Security::Tls(_)) => {
                Ok(Self::Https { host, port })
            }
            (Self::Tcp { host, port } | Self::Http { host, port }, Security::Insecure) => {
                Ok(Self::Http { host, port })
            }
            (Self::Unix(path), _) => Ok(Self::Unix(path)),
            (plain @ Self::Http { .. }, _) => Err(TargetError::Plain(plain.to_string())),
            (other, _) => Err(TargetError::NoCertificate(other.to_string())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, host, port) = match self {
            Self::Unix(path) => return write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } => ("tcp:", host, port),
            Self::Http { host, port } => ("http://", host, port),
            Self::Https { host, port } => ("https://", host, port),
        };
        if host.contains(':') { write!(f, "{way}[{host}]:{port}") } else { write!(f, "{way}{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_back() {
        for text in [
            "unix:/run/s.sock",
            "http://127.0.0.1:7000",
            "https://[::1]:7000",
            "tcp:[::1]:7000",
            "http://node-1.lan:1",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("http://a:1/".parse::<Target>().unwrap().to_string(), "http://a:1");
    }

    #[test]
    fn other_texts_are_refused_with_the_forms_that_there_are() {
        for text in [
            "",
            "unix:s.sock",
            "http://",
            "http://a",
            "http://:1",
            "http://a:x",
            "http://::1:1",
            "http://a b:1",
            "tcp:a",
            "tcp://a:1",
            "a:1",
        ] {
            let refused = text.parse::<Target>().unwrap_err().to_string();
            assert!(refused.contains("https://HOST:PORT"), "{text:?}: {refused}");
        }
    }

    #[test]
    fn tcp_is_without_tls_only_where_somebody_has_said_so() {
        let of = |text: &str, security| {
            text.parse::<Target>().unwrap().secured(&security).map(|target| target.to_string())
        };
        assert_eq!(of("tcp:a:1", Security::Insecure), Ok("http://a:1".to_owned()));
        assert_eq!(of("http://a:1", Security::Insecure), Ok("http://a:1".to_owned()));
        assert_eq!(of("unix:/s", Security::UnixOnly), Ok("unix:/s".to_owned()));
        let tls = |text: &str, security| matches!(of(text, security), Err(TargetError::NoCertificate(_)));
        assert!(tls("tcp:a:1", Security::UnixOnly) && tls("https://a:1", Security::UnixOnly));
        assert!(tls("https://a:1", Security::Insecure));
        assert!(matches!(of("http://a:1", Security::UnixOnly), Err(TargetError::Plain(_))));
    }
}
