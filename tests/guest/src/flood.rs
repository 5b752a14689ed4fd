//! Many vsock connections to the host that send garbage, as a hostile program in a guest could.

use crate::sys;
use std::{error::Error, io::Write as _};

/// Longer than any line or frame of the protocols.
const RUBBISH_BYTES: usize = 100_000;

/// Connects `count` times to a port of the host and keeps all that are taken, each with rubbish
/// written to it.
pub fn flood(port: u32, count: u32) -> Result<(), Box<dyn Error>> {
    let rubbish: Vec<u8> = (0..RUBBISH_BYTES).map(|i| u8::try_from(i * 7 % 251).unwrap_or(0)).collect();
    let (mut taken, mut refused) = (Vec::new(), 0_u32);
    for _ in 0..count {
        match sys::connect_to_host(port) {
            Ok(mut stream) => {
                // The host may close at any byte: that is its good right.
                if stream.write_all(&rubbish).is_ok() {
                    taken.push(stream);
                } else {
                    refused += 1;
                }
            }
            Err(_) => refused += 1,
        }
    }
    println!("taken {} refused {refused}", taken.len());
    Ok(())
}
