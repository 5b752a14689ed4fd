//! What two VMs must have in common for one to start from an image of the other.

use blake3::Hash;
use patina_abi::ABI;
use patina_control::VERSION;
use patina_snapshot::{container, facts::HostFacts, layout, manifest};
use std::fmt;

/// Of an image: two VMs with the same key boot to the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(Hash);

/// What the key is made of. Everything else of a VM, such as its name, its address and its
/// published ports, is not in an image: the VM gets it with its identity.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// The kernel's digest.
    pub kernel: Hash,
    /// The root file system's digest. The agent is in it.
    pub rootfs: Hash,
    /// The digest of the vmm program: it makes the machine, and the state.
    pub vmm: Hash,
    /// What the user added to the kernel's command line.
    pub cmdline: &'a str,
    /// How many vCPUs.
    pub vcpus: u8,
    /// RAM, MiB.
    pub memory_mib: u32,
    /// What a guest adapts itself to when it boots: see [`crate::vms::Settings::host_kind`].
    pub host: &'a str,
    /// What a VM with a CPU baseline needs; of the image itself, what its state says. None: it is
    /// offered all that the host has.
    pub needs: Option<&'a HostFacts>,
}

impl Key {
    /// That of VMs of this kind.
    #[must_use]
    pub fn of(kind: &Kind<'_>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("patina 2026 image of a booted VM");
        let mut field = |bytes: &[u8]| {
            // The length first: no two lists of fields are the same bytes.
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        [kind.kernel, kind.rootfs, kind.vmm].iter().for_each(|digest| field(digest.as_bytes()));
        field(kind.cmdline.as_bytes());
        field(kind.host.as_bytes());
        for number in
            [u32::from(kind.vcpus), kind.memory_mib, VERSION, ABI, container::FORMAT, manifest::VERSION]
        {
            field(&number.to_le_bytes());
        }
        for entry in kind.needs.map(HostFacts::features).unwrap_or_default() {
            field(&layout::to_bytes(&entry));
        }
        Self(hasher.finalize())
    }

    /// Reads one that was written. Nothing else is one: the file of an image has one name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hash = Hash::from_hex(text).ok()?;
        (hash.to_string() == text).then_some(Self(hash))
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_control::config::KvmKind;
    use patina_snapshot::cpuid::CpuidEntry;
    use std::collections::HashSet;

    fn hash(byte: u8) -> Hash {
        Hash::from_bytes([byte; 32])
    }

    #[test]
    fn whatever_differs_makes_another_key() {
        let kind = Kind {
            kernel: hash(1),
            rootfs: hash(2),
            vmm: hash(3),
            cmdline: "a=1",
            vcpus: 1,
            memory_mib: 256,
            host: "zen",
            needs: None,
        };
        let features = |ebx| {
            HostFacts::of_cpuid(KvmKind::Vmx, vec![CpuidEntry { function: 7, ebx, ..CpuidEntry::default() }])
        };
        let (all, fewer) = (features(3), features(1));
        let others = [
            Kind { kernel: hash(9), ..kind },
            Kind { rootfs: hash(9), ..kind },
            Kind { vmm: hash(9), ..kind },
            // The same files in other places.
            Kind { kernel: hash(2), rootfs: hash(1), ..kind },
            Kind { cmdline: "a=2", ..kind },
            // A part of one field in the next one.
            Kind { cmdline: "a=", host: "1zen", ..kind },
            Kind { vcpus: 2, ..kind },
            Kind { memory_mib: 512, ..kind },
            Kind { host: "zen 5", ..kind },
            Kind { needs: Some(&all), ..kind },
            Kind { needs: Some(&fewer), ..kind },
        ];
        let keys: HashSet<Key> = others.iter().chain([&kind]).map(Key::of).collect();
        assert_eq!(keys.len(), others.len() + 1);
        assert_eq!(Key::of(&kind), Key::of(&kind.clone()));
        // Of a baseline, what else its host is like makes no other kind of VM.
        let elsewhere = HostFacts { tsc_khz: 9, kernel: "k".into(), ..fewer.clone() };
        let with = |needs| Key::of(&Kind { needs: Some(needs), ..kind });
        assert_eq!(with(&elsewhere), with(&fewer));
    }

    #[test]
    fn a_key_reads_back_as_it_is_written_and_in_no_other_way() {
        let key = Key(hash(0xab));
        assert_eq!(Key::parse(&key.to_string()), Some(key));
        for wrong in ["", "ab", &"AB".repeat(32), &format!("{key}0"), &"g".repeat(64)] {
            assert!(Key::parse(wrong).is_none(), "{wrong}");
        }
    }
}
