//! Writes a manifest.

use super::{
    Description, ImageRef, Manifest, ManifestError, VERSION,
    wire::{
        Append as _, HEADER_BYTES, LAYERS, MAGIC, PREFAULT_LIST, REQUIRED, SECTION_HEADER_BYTES, STATE,
        TAG_LAST, TRAILER_BYTES, VM,
    },
};
use std::{borrow::Cow, os::unix::ffi::OsStrExt as _};

impl Manifest {
    /// The manifest's only encoding.
    ///
    /// # Errors
    /// A part is out of its limits.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let is_known = |tag: u32| tag <= TAG_LAST;
        if let Some(section) = self.optional.iter().find(|section| is_known(section.tag)) {
            return Err(ManifestError::Order { tag: section.tag });
        }
        if let Some(pair) = self.optional.windows(2).find(|pair| pair[0].tag >= pair[1].tag) {
            return Err(ManifestError::Order { tag: pair[1].tag });
        }
        let description = &self.description;
        let mut sections = vec![
            (VM, REQUIRED, Cow::Owned(vm(description))),
            (STATE, REQUIRED, Cow::Owned(self.state())),
            (LAYERS, REQUIRED, Cow::Owned(self.layers())),
        ];
        if !description.prefault_list.is_empty() {
            sections.push((PREFAULT_LIST, 0, Cow::Borrowed(description.prefault_list.as_slice())));
        }
        let optional = self.optional.iter().map(|section| (section.tag, 0, section.bytes.as_slice().into()));
        sections.extend(optional);

        let content = sections.iter().map(|(_, _, bytes)| SECTION_HEADER_BYTES + bytes.len());
        let length = HEADER_BYTES + content.sum::<usize>() + TRAILER_BYTES;
        let mut all = Vec::with_capacity(length);
        all.extend(MAGIC);
        all.u32(VERSION);
        all.u32(u32::try_from(sections.len()).unwrap_or(u32::MAX));
        all.u64(length as u64);
        for (tag, flags, bytes) in &sections {
            all.u32(*tag);
            all.u32(*flags);
            all.u64(bytes.len() as u64);
            all.extend_from_slice(bytes);
        }
        let digest = blake3::hash(&all);
        all.extend(digest.as_bytes());
        Ok(all)
    }

    fn state(&self) -> Vec<u8> {
        let mut to = Vec::new();
        to.u64(self.state.bytes);
        to.extend(self.state.digest.as_bytes());
        to
    }

    fn layers(&self) -> Vec<u8> {
        let mut to = Vec::new();
        to.u32(u32::try_from(self.layers.len()).unwrap_or(u32::MAX));
        for layer in &self.layers {
            to.extend(layer.id().as_bytes());
            to.u64(layer.bytes());
            to.u64(layer.runs().present());
            to.extend(layer.runs().bitmap());
            layer.runs().iter().for_each(|(_, digest)| to.extend(digest.as_bytes()));
        }
        to
    }
}

fn vm(of: &Description) -> Vec<u8> {
    let mut to = Vec::new();
    to.extend(of.uuid.as_bytes());
    to.u64(of.created_unix_ms);
    to.u32(of.memory_mib);
    to.u32(of.agent_abi);
    to.push(of.vcpus);
    to.text(of.name.as_bytes());
    to.text(of.cmdline.as_bytes());
    for ImageRef { digest, path } in [&of.kernel, &of.rootfs] {
        to.extend(digest.as_bytes());
        to.text(path.as_os_str().as_bytes());
    }
    to
}
