//! States as other hosts and releases write them, made of the state of a VM here.

use libtest_mimic::Failed;
use patina_snapshot::container::{Container, FACTS, Kind, Section, Tag, Writer};
use patina_snapshot::facts::HostFacts;
use patina_snapshot::layout::{Decoder, Encoder, Layout, LayoutError};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The content of a section as it is.
struct Raw<'a>(&'a [u8]);

impl Layout for Raw<'_> {
    fn encode(&self, to: &mut Encoder) {
        to.put(self.0);
    }

    fn decode(_: &mut Decoder<'_>) -> Result<Self, LayoutError> {
        Ok(Self(&[]))
    }
}

/// The same state with other facts, and with what `change` makes of each section.
pub fn rewritten(
    state: &OwnedFd,
    facts: impl FnOnce(&mut HostFacts),
    change: impl Fn(&mut Section<'_>),
) -> Result<OwnedFd, Failed> {
    let state = File::from(state.try_clone()?);
    let mut bytes = vec![0; usize::try_from(state.metadata()?.len())?];
    state.read_exact_at(&mut bytes, 0)?;
    let container = Container::read(&bytes)?;
    let mut needs = container.facts().clone();
    facts(&mut needs);
    let mut writer = Writer::new(&needs);
    for section in container.sections().iter().filter(|section| section.tag != FACTS.tag) {
        let mut section = *section;
        change(&mut section);
        let Section { tag, index, version, is_required, content } = section;
        writer.section(&Kind { tag, version, is_required }, index, &Raw(content));
    }
    let mut file = tempfile::tempfile()?;
    file.write_all(&writer.finish()?)?;
    Ok(file.into())
}

/// Whether a section has this tag.
pub fn is(section: &Section<'_>, tag: &[u8; 4]) -> bool {
    section.tag == Tag(*tag)
}
