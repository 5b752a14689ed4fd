//! The state of its VMs: a container as a real one, with the words that they heed.

use patina_control::config::KvmKind;
use patina_snapshot::{
    container::{Container, Kind, Tag, Writer},
    facts::HostFacts,
    sections::VCPU,
};

/// A real vmm passes over it.
const WORDS: Kind = Kind { tag: Tag(*b"WORD"), version: 1, is_required: false };
/// Where the version of the format is.
const FORMAT_AT: usize = 8;

/// What its VMs need of a host.
pub fn facts(kind: Option<KvmKind>) -> HostFacts {
    let facts = HostFacts::of_cpuid(kind.unwrap_or(KvmKind::Software), Vec::new());
    HostFacts { page_bytes: 4096, tsc_khz: 2_600_000, kernel: "6.18.1".into(), ..facts }
}

pub fn write(words: &str, kind: Option<KvmKind>) -> Vec<u8> {
    let has = |word: &str| words.split(' ').any(|w| w == word);
    let mut facts = facts(kind);
    if has("other-kvm") {
        facts.kvm_kind = if facts.kvm_kind == KvmKind::Vmx { KvmKind::Svm } else { KvmKind::Vmx };
    }
    let mut state = Writer::new(&facts);
    state.section(&WORDS, 0, &words.as_bytes().to_vec());
    if has("other-section") {
        state.section(&Kind { version: VCPU.version + 1, ..VCPU }, 0, &0_u64);
    }
    let mut state = state.finish().unwrap();
    if has("other-release") {
        state[FORMAT_AT] += 1;
    }
    if has("damaged-section") {
        *state.last_mut().unwrap() ^= 1;
    }
    state
}

pub fn read(bytes: &[u8]) -> String {
    let words: Vec<u8> = Container::read(bytes).unwrap().one(&WORDS).unwrap();
    String::from_utf8(words).unwrap()
}
