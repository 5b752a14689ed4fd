//! Sizes, ports and environment variables in the form that people write.

use blake3::Hash;
use clap::builder::{OsStringValueParser, TypedValueParser};
use patina_proto::v1::PublishedPort;
use std::{ffi::OsString, net::IpAddr};

/// Why a value on the command line is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a size of memory.
    #[error("\"{0}\" is not a size: write MiB as a number, or 512M, or 2G")]
    Memory(String),
    /// Not a digest.
    #[error("\"{0}\" is not a BLAKE3 digest: write 64 hex digits, as `vmctl host inspect` prints them")]
    Digest(String),
    /// Not a port of the host.
    #[error("\"{0}\" is not a port of the host: write HOST or ADDRESS:HOST, a port from 1 to 65535")]
    HostPort(String),
    /// Not a published port.
    #[error("\"{0}\" is not a published port: write HOST:GUEST or ADDRESS:HOST:GUEST, ports from 1 to 65535")]
    Port(String),
    /// Not an environment variable.
    #[error("\"{0}\" is not an environment variable: write KEY=VALUE")]
    Variable(String),
    /// Not UTF-8.
    #[error("not UTF-8: write it in UTF-8, because vmctl accepts no other names, addresses and paths")]
    NotUtf8,
    /// Not UTF-8, and for a program in a guest.
    #[error(
        "not UTF-8, and vmctl passes on UTF-8 only. Give such bytes to the program on its standard input, \
         or have a shell in the guest make them: vmctl exec NAME -- sh -c 'PROGRAM \"$(printf \"\\377\")\"'"
    )]
    GuestNotUtf8,
}

/// Any text; what is no UTF-8 is refused by the name of its option, which clap's own parser leaves
/// out.
pub fn utf8() -> impl TypedValueParser<Value = String> {
    utf8_or(ValueError::NotUtf8)
}

/// The same, for what a program in a guest is given.
pub fn guest_utf8() -> impl TypedValueParser<Value = String> {
    utf8_or(ValueError::GuestNotUtf8)
}

fn utf8_or(error: ValueError) -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().try_map(move |word: OsString| word.into_string().map_err(|_| error.clone()))
}

/// A BLAKE3 digest: 64 hex digits.
pub fn digest(text: &str) -> Result<[u8; 32], ValueError> {
    Hash::from_hex(text).map(Hash::into).map_err(|_| ValueError::Digest(text.to_owned()))
}

/// `512`, `512M`, `2G`: MiB.
pub fn memory_mib(text: &str) -> Result<u32, ValueError> {
    let error = || ValueError::Memory(text.to_owned());
    let upper = text.to_ascii_uppercase();
    let upper = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    let (digits, factor) = match upper.strip_suffix('G') {
        Some(digits) => (digits, 1024),
        None => (upper.strip_suffix('M').unwrap_or(upper), 1),
    };
    // `parse` would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error());
    }
    let number: u32 = digits.parse().map_err(|_| error())?;
    number.checked_mul(factor).filter(|&mib| mib > 0).ok_or_else(error)
}

/// `8080:80`, `0.0.0.0:8080:80`, `[::1]:8080:80`.
pub fn published_port(text: &str) -> Result<PublishedPort, ValueError> {
    let error = || ValueError::Port(text.to_owned());
    let (rest, guest) = text.rsplit_once(':').ok_or_else(error)?;
    let guest_port = port(guest).ok_or_else(error)?;
    let place = host_port(rest).map_err(|_| error())?;
    Ok(PublishedPort { guest_port, ..place })
}

/// `8080`, `0.0.0.0:8080`, `[::1]:8080`: where on the host a port is published.
pub fn host_port(text: &str) -> Result<PublishedPort, ValueError> {
    let error = || ValueError::HostPort(text.to_owned());
    let (address, host) = text.rsplit_once(':').unwrap_or(("", text));
    let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        return Err(error());
    }
    let host_port = port(host).ok_or_else(error)?;
    Ok(PublishedPort { host_port, guest_port: 0, host_address: address.to_owned() })
}

fn port(text: &str) -> Option<u32> {
    text.parse::<u16>().ok().filter(|&port| port > 0).map(u32::from)
}

/// Where on the host a port is published, as [`host_port`] reads it.
pub fn place(address: &str, port: u32) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// `KEY=VALUE`, as it is.
pub fn guest_variable() -> impl TypedValueParser<Value = String> {
    guest_utf8().try_map(|text| variable(&text))
}

fn variable(text: &str) -> Result<String, ValueError> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err(ValueError::Variable(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_mib() {
        let sizes = ["256", "512M", "2G", "2GiB", "64mb"].map(memory_mib);
        assert_eq!(sizes, [Ok(256), Ok(512), Ok(2048), Ok(2048), Ok(64)]);
        for wrong in ["", "G", "-1", "+5", "1T", "0", "9999999999", "4194304G"] {
            assert_eq!(memory_mib(wrong), Err(ValueError::Memory(wrong.to_owned())));
        }
    }

    #[test]
    fn a_digest_is_64_hex_digits() {
        let mut wanted = [0xab; 32];
        wanted[31] = 0x01;
        assert_eq!(digest(&format!("{}01", "aB".repeat(31))), Ok(wanted));
        let signed = format!("+1{}", "ab".repeat(31));
        let not_ascii = "ä".repeat(32);
        for wrong in ["", "ab", &"g".repeat(64), &"a".repeat(65), &signed, &not_ascii] {
            assert_eq!(digest(wrong), Err(ValueError::Digest(wrong.to_owned())));
        }
    }

    #[test]
    fn ports_read_with_and_without_an_address() {
        let port = |address: &str| PublishedPort {
            host_port: 8080,
            guest_port: 80,
            host_address: address.to_owned(),
        };
        assert_eq!(published_port("8080:80"), Ok(port("")));
        assert_eq!(published_port("0.0.0.0:8080:80"), Ok(port("0.0.0.0")));
        assert_eq!(published_port("[::1]:8080:80"), Ok(port("::1")));
        for wrong in ["80", "0:80", "8080:65536", "here:8080:80", "8080:", ":80", "a:b"] {
            assert_eq!(published_port(wrong), Err(ValueError::Port(wrong.to_owned())), "{wrong}");
        }
    }

    #[test]
    fn places_of_the_host_read_as_they_are_printed() {
        for (address, text) in [("", "8080"), ("0.0.0.0", "0.0.0.0:8080"), ("::1", "[::1]:8080")] {
            let place = host_port(text).unwrap();
            assert_eq!((place.host_address.as_str(), place.host_port, place.guest_port), (address, 8080, 0));
            if !address.is_empty() {
                assert_eq!(super::place(address, 8080), text);
            }
        }
        for wrong in ["", "0", "65536", "here:80", ":80:", "80:"] {
            assert_eq!(host_port(wrong), Err(ValueError::HostPort(wrong.to_owned())), "{wrong}");
        }
    }

    #[test]
    fn variables_have_a_name() {
        assert_eq!(variable("A=b=c"), Ok("A=b=c".to_owned()));
        assert!(variable("=b").is_err() && variable("A").is_err());
    }
}
