//! Takes the ELF kernel out of a bzImage.
//!
//! A bzImage contains its kernel compressed, and unpacks it in the guest. Software KVM would run
//! that at a million instructions a second. The host unpacks it here in a fraction of a second, and
//! both formats then boot the same way. `payload_offset` and `payload_length` (Linux boot protocol
//! 2.08) locate the payload.

use std::io::Read;

/// Longest kernel that is taken out, bytes.
pub const KERNEL_MAX_BYTES: u64 = 512 * 1024 * 1024;

/// Most memory that an xz or lzma stream may ask for besides the kernel, KiB. Linux's build asks
/// for 128 MiB.
const MEMORY_MAX_KIB: u32 = 512 * 1024;

const SETUP_SECTS: usize = 0x1f1;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;

/// Why no kernel could be taken out of a bzImage.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// The boot protocol is older than 2.08 (Linux 2.6.26).
    #[error("read the bzImage: boot protocol {major}.{minor:02} is older than 2.08")]
    Protocol {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The payload lies outside of the file.
    #[error(
        "read the bzImage: its payload at {offset:#x}, {length} bytes, is not within the file of {file} bytes; the file may be truncated"
    )]
    Payload {
        /// Offset in the file.
        offset: usize,
        /// Its length, bytes.
        length: usize,
        /// The file's length, bytes.
        file: usize,
    },
    /// The compression is not supported.
    #[error(
        "unpack the bzImage: compression with magic {0:02x?} is not supported (gzip, xz, lzma, zstd and lz4 are)"
    )]
    Compression([u8; 4]),
    /// The payload cannot be unpacked.
    #[error("unpack the bzImage's {format} payload: {reason}")]
    Unpack {
        /// Name of the compression.
        format: &'static str,
        /// What the decoder said.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Takes the ELF kernel out of a whole bzImage.
///
/// # Errors
/// The file is truncated, its protocol is too old, or its payload cannot be unpacked.
pub fn extract(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let u32_at = |offset: usize| {
        image.get(offset..offset + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])) as usize
    };
    let (minor, major) =
        (image.get(VERSION).copied().unwrap_or(0), image.get(VERSION + 1).copied().unwrap_or(0));
    if (major, minor) < (2, 8) {
        return Err(BzImageError::Protocol { major, minor });
    }
    let setup_sectors = match image.get(SETUP_SECTS).copied().unwrap_or(0) {
        0 => 4, // as the protocol says
        sectors => usize::from(sectors),
    };
    let offset = (setup_sectors + 1) * SECTOR_BYTES + u32_at(PAYLOAD_OFFSET);
    let length = u32_at(PAYLOAD_LENGTH);
    let payload = offset
        .checked_add(length)
        .and_then(|end| image.get(offset..end))
        .ok_or(BzImageError::Payload { offset, length, file: image.len() })?;
    unpack(payload)
}

fn unpack(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let mut magic = [0; 4];
    let known = payload.len().min(4);
    magic[..known].copy_from_slice(&payload[..known]);
    match magic {
        [0x1f, 0x8b, ..] => read_bounded("gzip", flate2::read::GzDecoder::new(payload)),
        [0x28, 0xb5, 0x2f, 0xfd] => unpack_zstd(payload),
        [0xfd, b'7', b'z', b'X'] => {
            let decoder = lzma_rust2::XzReader::new_mem_limit(without_size(payload), false, MEMORY_MAX_KIB);
            read_bounded("xz", decoder)
        }
        [0x5d, 0, 0, _] => {
            let decoder = lzma_rust2::LzmaReader::new_mem_limit(without_size(payload), MEMORY_MAX_KIB, None);
            read_bounded("lzma", decoder.map_err(failed("lzma"))?)
        }
        [0x02, 0x21, 0x4c, 0x18] => unpack_lz4(&payload[4..]),
        other => Err(BzImageError::Compression(other)),
    }
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    format: &'static str,
) -> impl Fn(E) -> BzImageError {
    move |reason| BzImageError::Unpack { format, reason: reason.into() }
}

fn read_bounded(format: &'static str, decoder: impl Read) -> Result<Vec<u8>, BzImageError> {
    let mut kernel = Vec::new();
    decoder.take(KERNEL_MAX_BYTES + 1).read_to_end(&mut kernel).map_err(failed(format))?;
    if kernel.len() as u64 > KERNEL_MAX_BYTES {
        return Err(failed(format)(format!("the kernel is longer than {KERNEL_MAX_BYTES} bytes")));
    }
    Ok(kernel)
}

/// All but gzip's payloads end with the unpacked size, four bytes that are not part of the stream.
fn without_size(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().saturating_sub(4)]
}

/// The decoder buffers unpacked data up to the window that the stream requests, so the window is
/// checked first. Linux's build requests 128 MiB.
fn unpack_zstd(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    let [_, _, _, _, descriptor, window, ..] = *payload else {
        return Err(failed("zstd")("it is truncated"));
    };
    let decoder = ruzstd::decoding::StreamingDecoder::new(payload).map_err(failed("zstd"))?;
    let window_bytes = if descriptor & SINGLE_SEGMENT == 0 {
        let base = 1_u64 << (10 + (window >> 3));
        base + base / 8 * u64::from(window & 7)
    } else {
        decoder.decoder.content_size()
    };
    if window_bytes > KERNEL_MAX_BYTES {
        return Err(failed("zstd")(format!("its window of {window_bytes} bytes is too large for a kernel")));
    }
    read_bounded("zstd", decoder)
}

/// The kernel's "legacy" lz4: blocks of at most 8 MiB, each behind its length as u32, then the
/// unpacked size.
fn unpack_lz4(mut blocks: &[u8]) -> Result<Vec<u8>, BzImageError> {
    const BLOCK_MAX_BYTES: usize = 8 * 1024 * 1024;
    let mut kernel = Vec::new();
    while let Some((head, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*head) as usize;
        let Some((block, rest)) = rest.split_at_checked(length) else {
            break; // what is left is the unpacked size
        };
        if length == 0 {
            break;
        }
        kernel.extend(lz4_flex::block::decompress(block, BLOCK_MAX_BYTES).map_err(failed("lz4"))?);
        if kernel.len() as u64 > KERNEL_MAX_BYTES {
            return Err(failed("lz4")(format!("the kernel is longer than {KERNEL_MAX_BYTES} bytes")));
        }
        blocks = rest;
    }
    Ok(kernel)
}

#[cfg(test)]
#[path = "bzimage_test.rs"]
mod tests;
