//! The address of a scheduler.

use std::{fmt, path::PathBuf, str::FromStr};

/// Where a scheduler is: `unix:PATH`, or `http://HOST:PORT`, which may be written `tcp:HOST:PORT`
/// too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The path of a Unix socket on this machine.
    Unix(PathBuf),
    /// A TCP address.
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
    #[error("write unix:/PATH, tcp:HOST:PORT or http://HOST:PORT, not {0:?}")]
    Form(String),
    /// There is no TLS.
    #[error("{0:?}: TLS is not supported yet; use http:// on a private network, or unix:/PATH through ssh")]
    Tls(String),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let form = || TargetError::Form(text.to_owned());
        if text.starts_with("https://") {
            return Err(TargetError::Tls(text.to_owned()));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(form()) };
        }
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("tcp:")).ok_or_else(form)?;
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(form)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let foreign = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'));
        let ambiguous = bare == host && host.contains(':');
        if bare.is_empty() || ambiguous || bare.contains(foreign) {
            return Err(form());
        }
        Ok(Self::Http { host: bare.to_owned(), port: port.parse().map_err(|_| form())? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Http { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_back() {
        for text in ["unix:/run/s.sock", "http://127.0.0.1:7000", "http://[::1]:7000", "http://node-1.lan:1"]
        {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("tcp:[::1]:7000".parse::<Target>().unwrap().to_string(), "http://[::1]:7000");
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
            assert!(refused.contains("http://HOST:PORT"), "{text:?}: {refused}");
        }
        assert!(matches!("https://a:1".parse::<Target>(), Err(TargetError::Tls(_))));
    }
}
