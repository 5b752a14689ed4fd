//! A snapshot as JSON, as a table row, and as `name: value` pairs.

use crate::{
    utc,
    view::{age, unix_ms},
};
use patina_proto::v1::{CreateSnapshotResponse, Snapshot, SnapshotImage, SnapshotLayer};
use serde::Serialize;
use std::time::Duration;

/// The header of [`SnapshotView::row`].
pub const HEADER: [&str; 7] = ["PATH", "VM", "VCPUS", "MEMORY", "LAYERS", "DATA", "AGE"];
/// How much of a digest stands in a line for people, characters.
const DIGEST_CHARS: usize = 16;

/// A snapshot as `-o json` prints it: the fields of `patina.v1.Snapshot`.
#[derive(Debug, Serialize)]
pub struct SnapshotView {
    pub path: String,
    uuid: String,
    vm: String,
    created_unix_ms: u64,
    vcpus: u32,
    memory_mib: u32,
    cmdline: String,
    kernel: ImageView,
    rootfs: ImageView,
    agent_abi: u32,
    layers: Vec<LayerView>,
    problem: String,
    own_kib: u64,
    shared_kib: u64,
    host: Option<HostView>,
}

/// The host that the VM needs.
#[derive(Debug, Serialize)]
struct HostView {
    cpu: String,
    kvm: String,
    kernel: String,
    tsc_khz: u32,
    xcr0: u64,
    problem: String,
}

impl HostView {
    fn details(&self) -> Vec<(&'static str, String)> {
        let fits = match self.problem.as_str() {
            "" => "yes".to_owned(),
            problem => format!("no: {problem}"),
        };
        let tsc = if self.tsc_khz > 0 { format!("{} kHz", self.tsc_khz) } else { String::new() };
        let xcr0 = if self.xcr0 > 0 { format!("{:#x}", self.xcr0) } else { String::new() };
        vec![
            ("cpu", self.cpu.clone()),
            ("kvm", self.kvm.clone()),
            ("tsc", tsc),
            ("xcr0", xcr0),
            ("host kernel", self.kernel.clone()),
            ("fits this host", fits),
        ]
    }
}

/// A file by its content.
#[derive(Debug, Serialize)]
struct ImageView {
    digest: String,
    path: String,
}

/// A part of the memory.
#[derive(Debug, Serialize)]
struct LayerView {
    id: String,
    data_kib: u64,
}

/// What `vmctl snapshot create` has made, as `-o json` prints it.
#[derive(Debug, Serialize)]
pub struct CreatedView {
    pub snapshot: SnapshotView,
    freeze_us: u64,
    pause_us: u64,
    written_layers: u32,
    written_kib: u64,
    free_kib: u64,
}

impl From<Option<SnapshotImage>> for ImageView {
    fn from(image: Option<SnapshotImage>) -> Self {
        let SnapshotImage { digest, path } = image.unwrap_or_default();
        Self { digest, path }
    }
}

impl From<Snapshot> for SnapshotView {
    fn from(snapshot: Snapshot) -> Self {
        let layer = |SnapshotLayer { id, data_kib }| LayerView { id, data_kib };
        Self {
            path: snapshot.path,
            uuid: snapshot.uuid,
            vm: snapshot.vm,
            created_unix_ms: snapshot.created_unix_ms,
            vcpus: snapshot.vcpus,
            memory_mib: snapshot.memory_mib,
            cmdline: snapshot.cmdline,
            kernel: snapshot.kernel.into(),
            rootfs: snapshot.rootfs.into(),
            agent_abi: snapshot.agent_abi,
            layers: snapshot.layers.into_iter().map(layer).collect(),
            problem: snapshot.problem,
            own_kib: snapshot.own_kib,
            shared_kib: snapshot.shared_kib,
            host: snapshot.host.map(|host| HostView {
                cpu: host.cpu,
                kvm: host.kvm,
                kernel: host.kernel,
                tsc_khz: host.tsc_khz,
                xcr0: host.xcr0,
                problem: host.problem,
            }),
        }
    }
}

impl From<CreateSnapshotResponse> for CreatedView {
    fn from(created: CreateSnapshotResponse) -> Self {
        let CreateSnapshotResponse { snapshot, freeze_us, pause_us, written_layers, written_kib, free_kib } =
            created;
        let snapshot = snapshot.unwrap_or_default().into();
        Self { snapshot, freeze_us, pause_us, written_layers, written_kib, free_kib }
    }
}

impl SnapshotView {
    /// Why it cannot be read; empty: it can.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// What a list of images says of it: vCPUs, memory, disk space, command line, root file system.
    /// None: it cannot be read.
    pub fn as_image(&self) -> Option<[String; 5]> {
        let memory = format!("{} MiB", self.memory_mib);
        let disk = mebibytes(self.own_kib + self.shared_kib);
        let row = [self.vcpus.to_string(), memory, disk, self.cmdline.clone(), self.rootfs.path.clone()];
        self.problem.is_empty().then_some(row)
    }

    fn data_kib(&self) -> u64 {
        self.layers.iter().map(|layer| layer.data_kib).sum()
    }

    /// The columns of `vmctl snapshot ls`. Of a snapshot that cannot be read, only what is wrong is
    /// known.
    pub fn row(&self) -> Vec<String> {
        if !self.problem.is_empty() {
            let mut row = vec![self.path.clone(), format!("({})", self.problem)];
            row.resize(HEADER.len(), String::new());
            return row;
        }
        vec![
            self.path.clone(),
            self.vm.clone(),
            self.vcpus.to_string(),
            format!("{} MiB", self.memory_mib),
            self.layers.len().to_string(),
            mebibytes(self.data_kib()),
            age(Duration::from_millis(unix_ms().saturating_sub(self.created_unix_ms))),
        ]
    }

    /// `name: value` pairs for `vmctl snapshot inspect`; what does not apply is left out.
    pub fn details(&self) -> Vec<(&'static str, String)> {
        let image = |image: &ImageView| format!("{} blake3:{}", image.path, image.digest);
        let mut rows = vec![
            ("path", self.path.clone()),
            ("uuid", self.uuid.clone()),
            ("vm", self.vm.clone()),
            ("created", utc::text(self.created_unix_ms)),
            ("vcpus", self.vcpus.to_string()),
            ("memory", format!("{} MiB", self.memory_mib)),
            ("cmdline", self.cmdline.clone()),
            ("kernel", image(&self.kernel)),
            ("rootfs", image(&self.rootfs)),
            ("agent", format!("ABI {}", self.agent_abi)),
        ];
        rows.extend(self.layers.iter().map(|layer| {
            let id: String = layer.id.chars().take(DIGEST_CHARS).collect();
            ("layer", format!("{id} {}", mebibytes(layer.data_kib)))
        }));
        let disk = match self.shared_kib {
            0 => mebibytes(self.own_kib),
            shared => {
                format!("{}, and {} shared with other snapshots", mebibytes(self.own_kib), mebibytes(shared))
            }
        };
        rows.push(("disk", disk));
        rows.extend(self.host.iter().flat_map(HostView::details));
        rows.retain(|(_, value)| !value.is_empty());
        rows
    }
}

impl CreatedView {
    /// What it has cost, in one line.
    pub fn summary(&self, name: &str) -> String {
        let free = match self.free_kib {
            0 => String::new(),
            free => format!(", {} left out as free", mebibytes(free)),
        };
        format!(
            "{name}: paused for {}.{} ms; {} of {} layers written, {}{free}",
            self.pause_us / 1000,
            self.pause_us % 1000 / 100,
            self.written_layers,
            self.snapshot.layers.len(),
            mebibytes(self.written_kib)
        )
    }
}

/// `12.5 MiB`.
pub fn mebibytes(kib: u64) -> String {
    format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let layer = |id: &str, data_kib| SnapshotLayer { id: id.repeat(64), data_kib };
        Snapshot {
            path: "/srv/base".into(),
            vm: "web".into(),
            vcpus: 2,
            memory_mib: 256,
            created_unix_ms: 1_763_796_621_042,
            kernel: Some(SnapshotImage { digest: "cd".repeat(32), path: "/k".into() }),
            layers: vec![layer("a", 1024), layer("b", 1536)],
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_row_has_what_is_in_the_layers() {
        let row = SnapshotView::from(snapshot()).row();
        assert_eq!(row[..6], ["/srv/base", "web", "2", "256 MiB", "2", "2.5 MiB"].map(str::to_owned));
        let torn =
            Snapshot { path: "/srv/torn".into(), problem: "no manifest".into(), ..Snapshot::default() };
        let row = SnapshotView::from(torn).row();
        assert_eq!((row.len(), row[..3].join(",")), (HEADER.len(), "/srv/torn,(no manifest),".to_owned()));
    }

    #[test]
    fn details_name_images_and_layers_by_their_digests() {
        let details = SnapshotView::from(snapshot()).details();
        assert!(details.contains(&("kernel", format!("/k blake3:{}", "cd".repeat(32)))), "{details:?}");
        assert!(details.contains(&("layer", format!("{} 1.5 MiB", "b".repeat(16)))), "{details:?}");
        assert!(details.contains(&("created", "2025-11-22T07:30:21.042Z".to_owned())), "{details:?}");
        assert!(!details.iter().any(|(name, _)| *name == "cmdline"));
    }

    #[test]
    fn what_was_written_is_told_from_what_was_there() {
        let created = CreateSnapshotResponse {
            snapshot: Some(snapshot()),
            pause_us: 950,
            written_layers: 1,
            written_kib: 1536,
            ..CreateSnapshotResponse::default()
        };
        let with_free = CreateSnapshotResponse { free_kib: 512, ..created.clone() };
        assert_eq!(
            CreatedView::from(with_free).summary("web"),
            "web: paused for 0.9 ms; 1 of 2 layers written, 1.5 MiB, 0.5 MiB left out as free"
        );
        let view = CreatedView::from(created);
        assert_eq!(view.summary("web"), "web: paused for 0.9 ms; 1 of 2 layers written, 1.5 MiB");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!((&json["snapshot"]["path"], &json["written_layers"]), (&"/srv/base".into(), &1.into()));
    }
}
