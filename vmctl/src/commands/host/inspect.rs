//! `vmctl host inspect`: everything about one host.

use crate::{
    commands::hosts::HostView,
    error::CtlError,
    output::{self, Format},
    view::{age, unix_ms},
};
use patina_proto::v1::{CpuidLeaf, HostFacts, HostInfo, HostStatus, Images, KvmKind};
use serde::Serialize;
use std::time::Duration;

/// A host as `-o json` prints it: more than the list of hosts has.
#[derive(Debug, Serialize)]
struct InspectView {
    #[serde(flatten)]
    host: HostView,
    /// What is really free of its memory.
    free_memory_mib: Option<u64>,
    cpu_percent: u32,
    memory_percent: u32,
    overlay: String,
    /// BLAKE3 of the kernels and root file systems that are there.
    images: Vec<String>,
    facts: Option<FactsView>,
}

/// What its VMs rely on.
#[derive(Debug, Serialize)]
struct FactsView {
    cpu_vendor: String,
    cpu_family: u32,
    cpu_model: u32,
    cpu_stepping: u32,
    kvm: &'static str,
    page_bytes: u32,
    xcr0: u64,
    tsc_khz: u32,
    can_scale_tsc: bool,
    kernel: String,
    lazy_memory: bool,
    cpuid: Vec<LeafView>,
}

/// What CPUID returns for a leaf.
#[derive(Debug, Serialize)]
struct LeafView {
    leaf: u32,
    subleaf: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

impl From<HostStatus> for InspectView {
    fn from(mut status: HostStatus) -> Self {
        let info = status.info.as_mut().map(|info| HostInfo { facts: info.facts.take(), ..info.clone() });
        let info = info.unwrap_or_default();
        Self {
            free_memory_mib: status.free_memory_mib,
            cpu_percent: info.cpu_percent,
            memory_percent: info.memory_percent,
            overlay: info.overlay,
            images: images(status.images.take()),
            facts: info.facts.map(FactsView::from),
            host: status.into(),
        }
    }
}

fn images(images: Option<Images>) -> Vec<String> {
    let hex = |digest: Vec<u8>| digest.iter().map(|byte| format!("{byte:02x}")).collect();
    images.unwrap_or_default().digests.into_iter().map(hex).collect()
}

impl From<HostFacts> for FactsView {
    fn from(facts: HostFacts) -> Self {
        let leaf = |leaf: &CpuidLeaf| {
            let CpuidLeaf { leaf, subleaf, eax, ebx, ecx, edx } = *leaf;
            LeafView { leaf, subleaf, eax, ebx, ecx, edx }
        };
        let kvm = match facts.kvm_kind() {
            KvmKind::Vmx => "vmx",
            KvmKind::Svm => "svm",
            KvmKind::Software => "software",
            KvmKind::None | KvmKind::Unspecified => "unknown",
        };
        Self {
            cpu_vendor: facts.cpu_vendor.escape_ascii().to_string(),
            cpu_family: facts.cpu_family,
            cpu_model: facts.cpu_model,
            cpu_stepping: facts.cpu_stepping,
            kvm,
            page_bytes: facts.page_bytes,
            xcr0: facts.xcr0,
            tsc_khz: facts.tsc_khz,
            can_scale_tsc: facts.can_scale_tsc,
            kernel: facts.kernel,
            lazy_memory: facts.lazy_memory,
            cpuid: facts.cpuid.iter().map(leaf).collect(),
        }
    }
}

/// Prints all about a host.
pub fn print(format: Format, status: HostStatus) -> Result<(), CtlError> {
    let view = InspectView::from(status);
    match format {
        Format::Json => output::json(&view),
        Format::Table => {
            let rows = view.rows(unix_ms());
            output::table(&[], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]))
        }
    }
}

impl InspectView {
    fn rows(&self, now_unix_ms: u64) -> Vec<(&'static str, String)> {
        let said = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let free = self.free_memory_mib.map_or("not known".to_owned(), |mib| format!("{mib} MiB"));
        let host = &self.host;
        let seen = match host.seen_unix_ms {
            0 => "never".to_owned(),
            seen => format!("{} ago", age(Duration::from_millis(now_unix_ms.saturating_sub(seen)))),
        };
        let most = if host.max_vms == 0 { String::new() } else { format!(" of {}", host.max_vms) };
        let mut rows = vec![
            ("name", host.name.clone()),
            ("id", host.id.clone()),
            ("state", host.state.to_owned()),
            ("scheduling", host.scheduling.to_owned()),
            ("seen", seen),
            ("address", said(&host.address)),
            ("overlay", said(&self.overlay)),
            ("CPUs", format!("{} of {} reserved, {} real", host.held_cpus, host.cpus, host.real_cpus)),
            (
                "memory",
                format!(
                    "{} of {} MiB reserved, {} MiB real",
                    host.held_memory_mib, host.memory_mib, host.real_memory_mib
                ),
            ),
            ("memory really free", free),
            ("VMs", format!("{}{most} reserved", host.held_vms)),
        ];
        match self.images.as_slice() {
            [] => rows.push(("kernels, rootfs", "none that is known".to_owned())),
            images => rows.extend(images.iter().map(|image| ("kernel or rootfs", image.clone()))),
        }
        match &self.facts {
            Some(facts) => rows.extend(facts.rows()),
            None => rows.push(("CPU", "not known: its VMs stay there, and others' do not come".to_owned())),
        }
        rows
    }
}

impl FactsView {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let Self { cpu_vendor, cpu_family, cpu_model, cpu_stepping, .. } = self;
        let tsc = match (self.tsc_khz, self.can_scale_tsc) {
            (0, _) => "not known".to_owned(),
            (khz, true) => format!("{khz} kHz, can be scaled"),
            (khz, false) => format!("{khz} kHz, cannot be scaled"),
        };
        let lazy = if self.lazy_memory { "yes" } else { "no: it needs Linux 6.7 or later" };
        vec![
            ("CPU", format!("{cpu_vendor} family {cpu_family} model {cpu_model} stepping {cpu_stepping}")),
            ("KVM", self.kvm.to_owned()),
            ("XCR0", format!("{:#x}", self.xcr0)),
            ("TSC", tsc),
            ("page", format!("{} bytes", self.page_bytes)),
            ("kernel", self.kernel.clone()),
            ("memory can arrive later", lazy.to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> HostStatus {
        let facts = HostFacts {
            cpu_vendor: b"AuthenticAMD".to_vec(),
            cpu_family: 25,
            cpu_model: 17,
            cpu_stepping: 1,
            kvm_kind: KvmKind::Svm.into(),
            page_bytes: 4096,
            xcr0: 7,
            tsc_khz: 2_600_000,
            can_scale_tsc: true,
            kernel: "6.18.1".into(),
            cpuid: vec![CpuidLeaf { leaf: 7, subleaf: 1, eax: 1, ..CpuidLeaf::default() }],
            lazy_memory: true,
        };
        let info = HostInfo {
            name: "a".into(),
            cpus: 2,
            max_vms: 8,
            overlay: "192.0.2.7:4789".into(),
            facts: Some(facts),
            ..HostInfo::default()
        };
        let images = Some(Images { digests: vec![vec![0xab; 32]] });
        HostStatus {
            info: Some(info),
            held_vms: 3,
            free_memory_mib: Some(512),
            images,
            ..HostStatus::default()
        }
    }

    #[test]
    fn a_host_is_shown_with_what_its_vms_rely_on() {
        let view = InspectView::from(status());
        let rows = view.rows(0);
        let of = |name| rows.iter().find(|(row, _)| *row == name).map(|(_, value)| value.as_str());
        assert_eq!(of("name"), Some("a"));
        assert_eq!(of("VMs"), Some("3 of 8 reserved"));
        assert_eq!(of("overlay"), Some("192.0.2.7:4789"));
        assert_eq!(of("memory really free"), Some("512 MiB"));
        assert_eq!(of("kernel or rootfs"), Some("ab".repeat(32).as_str()));
        assert_eq!(of("CPU"), Some("AuthenticAMD family 25 model 17 stepping 1"));
        assert_eq!(of("KVM"), Some("svm"));
        assert_eq!(of("TSC"), Some("2600000 kHz, can be scaled"));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(
            (&json["name"], &json["real_cpus"], &json["facts"]["xcr0"]),
            (&"a".into(), &2.into(), &7.into())
        );
        assert_eq!(json["facts"]["cpuid"][0]["eax"], 1);
        assert_eq!(json["free_memory_mib"], 512);
        assert_eq!(json["images"], serde_json::json!(["ab".repeat(32)]));
    }

    #[test]
    fn what_an_older_host_does_not_say_is_not_known() {
        let mut older = status();
        older.info.as_mut().unwrap().facts = None;
        older.free_memory_mib = None;
        let view = InspectView::from(older);
        let rows = view.rows(0);
        assert!(rows.iter().any(|(name, value)| *name == "CPU" && value.starts_with("not known")));
        let json = serde_json::to_value(&view).unwrap();
        assert!(json["facts"].is_null() && json["free_memory_mib"].is_null());
    }
}
