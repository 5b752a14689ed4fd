//! Reads a manifest. Whatever the bytes are, it ends in a manifest or in an error.

use super::{
    Description, ImageRef, Layer, MANIFEST_MAX_BYTES, Manifest, ManifestError, OPTIONAL_MAX, RUN_BYTES, Runs,
    Section, StateRef, VERSION,
    runs::bitmap_bytes,
    wire::{
        HEADER_BYTES, LAYERS, MAGIC, PREFAULT_LIST, REQUIRED, Reader, STATE, TAG_LAST, TRAILER_BYTES, VM,
    },
};
use blake3::Hash;
use patina_control::config::LAYERS_MAX;
use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, sync::Arc};
use uuid::Uuid;

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// The bytes are not exactly what [`Self::encode`] writes.
    pub fn decode(all: &[u8]) -> Result<Self, ManifestError> {
        let sections = open(all)?;
        let (mut description, mut state, mut layers) = (None, None, None);
        let mut prefault_list = Vec::new();
        let mut optional = Vec::new();
        let mut last = 0;
        let mut rest = Reader::of("list of sections", &all[HEADER_BYTES..all.len() - TRAILER_BYTES]);
        for _ in 0..sections {
            let (tag, flags, length) = (rest.u32()?, rest.u32()?, rest.length()?);
            let bytes = rest.bytes(length)?;
            if tag <= last {
                return Err(ManifestError::Order { tag });
            }
            last = tag;
            let is_required = matches!(tag, VM | STATE | LAYERS);
            match flags {
                REQUIRED if tag > TAG_LAST => return Err(ManifestError::Unknown { tag }),
                0 if !is_required => {}
                REQUIRED if is_required => {}
                _ => return Err(ManifestError::Flags { tag, flags }),
            }
            match tag {
                VM => description = Some(read_vm(bytes)?),
                STATE => state = Some(read_state(bytes)?),
                LAYERS => layers = Some(read_layers(bytes)?),
                PREFAULT_LIST if bytes.is_empty() => {
                    return Err(ManifestError::Cut { part: "prefault list" });
                }
                PREFAULT_LIST => prefault_list = bytes.to_vec(),
                _ => optional.push(Section { tag, bytes: bytes.to_vec() }),
            }
        }
        rest.end()?;
        let missing = |tag| ManifestError::Missing { tag };
        let description = Description { prefault_list, ..description.ok_or(missing(VM))? };
        let (state, layers) = (state.ok_or(missing(STATE))?, layers.ok_or(missing(LAYERS))?);
        let manifest = Self { description, state, layers, optional };
        manifest.check()?;
        Ok(manifest)
    }
}

/// Whether bytes begin as a manifest of any version does.
#[must_use]
pub fn is_manifest(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Checks header and trailer. Returns the number of sections.
fn open(all: &[u8]) -> Result<u32, ManifestError> {
    let found = all.len() as u64;
    if found > MANIFEST_MAX_BYTES {
        return Err(ManifestError::TooLong { found });
    }
    let mut header = Reader::of("header", all);
    if header.array()? != MAGIC {
        return Err(ManifestError::Magic);
    }
    // A version comes before everything that another version may have changed.
    let version = header.u32()?;
    if version != VERSION {
        return Err(ManifestError::Version { found: version });
    }
    let (sections, expected) = (header.u32()?, header.u64()?);
    if expected != found {
        return Err(ManifestError::Length { expected, found });
    }
    let content = all.len().checked_sub(TRAILER_BYTES).filter(|content| *content >= HEADER_BYTES);
    let (content, trailer) = all.split_at(content.ok_or(ManifestError::Cut { part: "trailer" })?);
    if blake3::hash(content) != Reader::of("trailer", trailer).array::<TRAILER_BYTES>()? {
        return Err(ManifestError::Digest);
    }
    let most = usize::try_from(TAG_LAST).unwrap_or(usize::MAX) + OPTIONAL_MAX;
    if usize::try_from(sections).is_ok_and(|sections| sections <= most) {
        Ok(sections)
    } else {
        let (found, expected) = (sections.to_string(), format!("at most {most}"));
        Err(ManifestError::Field { field: "number of sections", found, expected })
    }
}

fn read_vm(bytes: &[u8]) -> Result<Description, ManifestError> {
    let mut from = Reader::of("description of the VM", bytes);
    let description = Description {
        uuid: Uuid::from_bytes(from.array()?),
        created_unix_ms: from.u64()?,
        memory_mib: from.u32()?,
        agent_abi: from.u32()?,
        vcpus: from.u8()?,
        name: read_string(&mut from, "name")?,
        cmdline: read_string(&mut from, "command line")?,
        kernel: read_image(&mut from)?,
        rootfs: read_image(&mut from)?,
        prefault_list: Vec::new(),
    };
    from.end()?;
    Ok(description)
}

fn read_string(from: &mut Reader<'_>, field: &'static str) -> Result<String, ManifestError> {
    let bytes = from.text()?;
    String::from_utf8(bytes.to_vec()).map_err(|error| ManifestError::Field {
        field,
        found: error.to_string(),
        expected: "UTF-8".to_owned(),
    })
}

fn read_image(from: &mut Reader<'_>) -> Result<ImageRef, ManifestError> {
    let digest = Hash::from_bytes(from.array()?);
    Ok(ImageRef { digest, path: OsStr::from_bytes(from.text()?).into() })
}

fn read_state(bytes: &[u8]) -> Result<StateRef, ManifestError> {
    let mut from = Reader::of("state", bytes);
    let state = StateRef { bytes: from.u64()?, digest: Hash::from_bytes(from.array()?) };
    from.end()?;
    Ok(state)
}

fn read_layers(bytes: &[u8]) -> Result<Vec<Arc<Layer>>, ManifestError> {
    let mut from = Reader::of("list of layers", bytes);
    let count = usize::try_from(from.u32()?).unwrap_or(usize::MAX);
    if count > LAYERS_MAX {
        let expected = format!("1 to {LAYERS_MAX}");
        return Err(ManifestError::Field { field: "number of layers", found: count.to_string(), expected });
    }
    let layers = (0..count).map(|_| read_layer(&mut from).map(Arc::new)).collect::<Result<_, _>>()?;
    from.end()?;
    Ok(layers)
}

fn read_layer(from: &mut Reader<'_>) -> Result<Layer, ManifestError> {
    const FIELD: &str = "layer";
    let wrong = |found: String, expected: &str| ManifestError::Field {
        field: FIELD,
        found,
        expected: expected.to_owned(),
    };
    let (id, bytes, present) = (from.array::<32>()?, from.u64()?, from.length()?);
    if bytes % RUN_BYTES != 0 {
        return Err(wrong(format!("{bytes} bytes"), "whole runs of 64 KiB"));
    }
    let count = bytes / RUN_BYTES;
    let cut = || ManifestError::Cut { part: "list of layers" };
    // Only what is there is copied, whatever the numbers say.
    let bitmap = from.bytes(bitmap_bytes(count).ok_or_else(cut)?)?;
    let digests = from.bytes(present.checked_mul(32).ok_or_else(cut)?)?.as_chunks().0;
    let digests = digests.iter().map(|digest: &[u8; 32]| Hash::from_bytes(*digest)).collect();
    let runs = Runs::of_bitmap(count, bitmap, digests)
        .ok_or_else(|| wrong(format!("{present} digests"), "one for each run in its bitmap"))?;
    let layer = Layer::new(runs);
    if *layer.id().as_bytes() != id {
        return Err(wrong("an id".to_owned(), "the id that its digests have"));
    }
    Ok(layer)
}
