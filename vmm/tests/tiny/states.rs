//! States as other hosts and releases write them, made of the state of a VM here.

use libtest_mimic::Failed;
use patina_snapshot::container::{Container, FACTS, Kind, Section, Tag, Writer};
use patina_snapshot::cpuid::CpuidEntry;
use patina_snapshot::facts::HostFacts;
use patina_snapshot::layout::{self, Decoder, Encoder, Layout, LayoutError};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

impl super::Guest {
    /// It is offered only what is in these facts.
    pub fn cpu_baseline(self, facts: &HostFacts) -> Self {
        self.cpu_baseline_bytes(layout::to_bytes(facts))
    }

    /// The same, whatever the bytes are.
    pub fn cpu_baseline_bytes(self, bytes: Vec<u8>) -> Self {
        Self { cpu_baseline: Some(bytes), ..self }
    }
}

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

fn bytes(state: &OwnedFd) -> Result<Vec<u8>, Failed> {
    let state = File::from(state.try_clone()?);
    let mut bytes = vec![0; usize::try_from(state.metadata()?.len())?];
    state.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// What the VM needs of a host.
pub fn needs(state: &OwnedFd) -> Result<HostFacts, Failed> {
    Ok(Container::read(&bytes(state)?)?.facts().clone())
}

/// The CPUID of each vCPU: a vCPU's state begins with it.
pub fn vcpus_cpuid(state: &OwnedFd) -> Result<Vec<Vec<CpuidEntry>>, Failed> {
    let bytes = bytes(state)?;
    let container = Container::read(&bytes)?;
    let vcpus = container.sections().iter().filter(|section| is(section, b"VCPU"));
    let cpuid = vcpus.map(|section| Layout::decode(&mut Decoder::new(section.content)));
    Ok(cpuid.collect::<Result<_, _>>()?)
}

/// The same state with other facts, and with what `change` makes of each section.
pub fn rewritten(
    state: &OwnedFd,
    facts: impl FnOnce(&mut HostFacts),
    change: impl Fn(&mut Section<'_>),
) -> Result<OwnedFd, Failed> {
    let bytes = bytes(state)?;
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
