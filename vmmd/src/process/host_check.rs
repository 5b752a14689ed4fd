//! What `vmm --check-host` finds out about this host, asked once when `vmmd` starts: whether the
//! kernel can be relied on, and what a VM of this host needs.

use super::kvm_module;
use patina_control::config::{HostCheck, KVM_KIND_VARIABLE};
use patina_daemon::chain;
use patina_snapshot::{facts::HostFacts, layout};
use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Stdio,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{process::Command, time::timeout};

/// How long the check may take. It takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest part of its output that is read, bytes.
const OUTPUT_MAX_BYTES: usize = 64 * 1024;

/// The kernel does not change while this process runs.
static AVOID_PAGEMAP_SCAN: AtomicBool = AtomicBool::new(false);
/// Nor do CPU and KVM.
static FACTS: OnceLock<HostFacts> = OnceLock::new();

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("run it")]
    Run(#[from] std::io::Error),
    #[error("it has not ended after {0:?}")]
    Timeout(Duration),
    #[error("it ended with {0}")]
    Failed(std::process::ExitStatus),
    #[error("read its result")]
    Parse(#[from] serde_json::Error),
}

impl CheckError {
    /// Whether the check itself was under way. An older `vmm`, which does not know it, says so at
    /// once.
    fn is_unfinished(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::Failed(status) => status.signal().is_some(),
            Self::Run(_) | Self::Parse(_) => false,
        }
    }
}

/// Runs the check. Where it cannot be run, an older `vmm` for instance, the kernel counts as good;
/// where it does not come to its end, it does not.
pub async fn run(vmm: &Path) {
    run_for(vmm, PATIENCE).await;
}

async fn run_for(vmm: &Path, patience: Duration) {
    let checked = check(vmm, patience).await.map(|checked| {
        note_facts(checked.facts.as_deref());
        checked.pagemap_fault
    });
    match checked {
        Ok(None) => {}
        Ok(Some(fault)) => {
            AVOID_PAGEMAP_SCAN.store(true, Ordering::Relaxed);
            tracing::warn!(
                fault,
                "this kernel reports written pages wrongly; each freeze copies all private pages instead, which \
                 makes pauses longer; update the kernel"
            );
        }
        Err(error) if error.is_unfinished() => {
            AVOID_PAGEMAP_SCAN.store(true, Ordering::Relaxed);
            tracing::warn!(
                error = %chain(&error),
                "vmm --check-host did not come to its end: nobody knows whether this kernel reports written pages \
                 rightly; each freeze copies all private pages instead, which makes pauses longer; restart vmmd to \
                 check again"
            );
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "check the kernel with vmm --check-host");
        }
    }
}

/// Whether vmms are to do without PAGEMAP_SCAN.
#[must_use]
pub fn avoid_pagemap_scan() -> bool {
    AVOID_PAGEMAP_SCAN.load(Ordering::Relaxed)
}

fn note_facts(facts: Option<&[u8]>) {
    match facts.map(layout::from_bytes) {
        Some(Ok(facts)) => drop(FACTS.set(facts)),
        Some(Err(error)) => {
            tracing::warn!(error = %chain(&error), "read what vmm --check-host says of this host")
        }
        None => tracing::debug!("vmm --check-host does not say what VMs of this host need"),
    }
}

/// What a VM that is made on this host needs of a host. None: nobody knows.
#[must_use]
pub fn facts() -> Option<&'static HostFacts> {
    FACTS.get()
}

async fn check(vmm: &Path, patience: Duration) -> Result<HostCheck, CheckError> {
    let mut command = Command::new(vmm);
    command.arg("--check-host").env_clear().current_dir("/").stdin(Stdio::null()).stderr(Stdio::null());
    let kind = kvm_module::kind().and_then(|kind| serde_json::to_value(kind).ok());
    command.envs(kind.as_ref().and_then(|kind| kind.as_str()).map(|kind| (KVM_KIND_VARIABLE, kind)));
    let output = timeout(patience, command.kill_on_drop(true).output()).await;
    let output = output.map_err(|_| CheckError::Timeout(patience))??;
    if !output.status.success() {
        return Err(CheckError::Failed(output.status));
    }
    let text = output.stdout.get(..OUTPUT_MAX_BYTES).unwrap_or(&output.stdout);
    Ok(serde_json::from_slice(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    /// A program that stands in for a vmm.
    fn program(dir: &Path, body: &str) -> std::path::PathBuf {
        let path = dir.join("vmm");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn the_result_is_read_and_a_fault_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let result = |body: &str| {
            let path = program(dir.path(), body);
            async move { check(&path, PATIENCE).await }
        };
        let good = result(r#"[ "$1" = --check-host ] && echo '{"pagemap_fault":null,"more":1}'"#).await;
        assert_eq!(good.unwrap(), HostCheck { pagemap_fault: None, facts: None });
        assert!(matches!(result("exit 2").await, Err(CheckError::Failed(_))));
        assert!(matches!(result("echo no").await, Err(CheckError::Parse(_))));
        assert!(matches!(check(&dir.path().join("none"), PATIENCE).await, Err(CheckError::Run(_))));
        assert!(!avoid_pagemap_scan());
        run(&program(dir.path(), r#"echo '{"pagemap_fault":"wrong"}'"#)).await;
        assert!(avoid_pagemap_scan());
    }

    #[tokio::test]
    async fn a_kernel_whose_check_does_not_end_counts_as_not_good() {
        let dir = tempfile::tempdir().unwrap();
        for body in ["exec sleep 100", "kill -SEGV $$"] {
            AVOID_PAGEMAP_SCAN.store(false, Ordering::Relaxed);
            run_for(&program(dir.path(), body), Duration::from_millis(500)).await;
            assert!(avoid_pagemap_scan(), "{body}");
        }
        AVOID_PAGEMAP_SCAN.store(false, Ordering::Relaxed);
        run_for(&program(dir.path(), "exit 2"), PATIENCE).await;
        assert!(!avoid_pagemap_scan(), "an older vmm does not know the check");
    }
}
