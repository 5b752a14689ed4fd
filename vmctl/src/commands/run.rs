//! `vmctl run`: creates a VM, starts it, and waits until its agent is ready.

use super::Context;
use crate::{
    client::Client,
    error::CtlError,
    output::{self, Format},
    values,
    view::{self, VmView},
};
use indicatif::{ProgressBar, ProgressStyle};
use patina_proto::v1::{
    CpuBaseline, CreateVmRequest, GetVmRequest, LogsRequest, PublishedPort, Vm, WaitVmRequest,
    logs_request::Source, wait_vm_request::Until,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_stream::StreamExt as _;
use tonic::Code;

/// How many of the console's last lines are shown when a VM ends before it is ready.
const CONSOLE_LINES: usize = 15;

/// Arguments of `vmctl run`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The VM's name; without, vmmd chooses one.
    #[arg(long)]
    name: Option<String>,
    /// Virtual CPUs, 1 to 16.
    #[arg(long, default_value_t = 1, value_name = "N")]
    vcpus: u32,
    /// RAM: MiB, or with a unit 512M or 2G; 64M to 64G.
    #[arg(short, long, default_value = "256M", value_parser = values::memory_mib, value_name = "SIZE")]
    memory: u32,
    /// Publish a port of the guest on the host; without an address on 127.0.0.1.
    #[arg(short, long = "publish", value_parser = values::published_port, value_name = "[ADDRESS:]HOST:GUEST")]
    publish: Vec<PublishedPort>,
    /// A kernel of your own, ELF or bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// A root file system of your own, a disk image.
    #[arg(long, value_name = "FILE")]
    rootfs: Option<PathBuf>,
    /// Added to the kernel's command line.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Boot, even if there is an image of such a VM (`vmctl image ls`).
    #[arg(long)]
    cold: bool,
    /// Offer the VM only CPU features that this host and these others have, by name or id; without
    /// a HOST, all hosts of the scheduler that are up and not draining. Its clones can then run on
    /// each of them, even if their processors differ.
    #[arg(long, value_name = "HOST,...", num_args = 0.., value_delimiter = ',')]
    cpu_baseline: Option<Vec<String>>,
    /// Do not wait until the agent is ready.
    #[arg(long, alias = "detach")]
    no_wait: bool,
    /// Wait for the agent at most this long, seconds; then the exit code is 124, and the VM runs
    /// on.
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout: Option<u64>,
}

/// Starts the VM, prints its name.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let (no_wait, timeout) = (arguments.no_wait, arguments.timeout);
    let mut client = context.client().await?;
    let vm = client.create_vm(request(arguments)).await?.into_inner();
    let vm = if no_wait { vm } else { wait_ready(&mut client, vm, timeout).await? };
    match context.format {
        Format::Json => output::json(&VmView::from(vm)),
        Format::Table => output::line(&vm.name),
    }
}

fn request(arguments: Arguments) -> CreateVmRequest {
    CreateVmRequest {
        name: arguments.name.unwrap_or_default(),
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory,
        kernel: arguments.kernel.as_deref().map(absolute).unwrap_or_default(),
        rootfs: arguments.rootfs.as_deref().map(absolute).unwrap_or_default(),
        cmdline: arguments.cmdline.unwrap_or_default(),
        ports: arguments.publish,
        cold: arguments.cold,
        cpu_baseline: arguments.cpu_baseline.map(|hosts| CpuBaseline { hosts }),
    }
}

/// vmmd has another working directory.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

async fn wait_ready(client: &mut Client, vm: Vm, timeout: Option<u64>) -> Result<Vm, CtlError> {
    let bar = ProgressBar::new_spinner()
        .with_style(
            ProgressStyle::with_template("{spinner} {msg} {elapsed}")
                .unwrap_or(ProgressStyle::default_spinner()),
        )
        .with_message(format!("{} {}", vm.name, if vm.image.is_empty() { "boots" } else { "starts" }));
    bar.enable_steady_tick(Duration::from_millis(200));
    let request = WaitVmRequest {
        name: vm.name.clone(),
        until: Until::Ready.into(),
        timeout_ms: timeout.map_or(0, |seconds| seconds * 1000),
    };
    let ready = client.wait_vm(request).await;
    bar.finish_and_clear();
    match ready {
        Ok(vm) => Ok(vm.into_inner()),
        Err(status) if status.code() == Code::FailedPrecondition => Err(ended_early(client, vm.name).await?),
        Err(status) => Err(status.into()),
    }
}

/// Shows the end of the console, which tells most, and makes the error with the reason.
async fn ended_early(client: &mut Client, name: String) -> Result<CtlError, CtlError> {
    let vm = client.get_vm(GetVmRequest { name: name.clone() }).await?.into_inner();
    let request = LogsRequest { name: name.clone(), follow: false, source: Source::Console.into() };
    let mut stream = client.logs(request).await?.into_inner();
    let mut console = Vec::new();
    while let Some(part) = stream.next().await {
        console.extend_from_slice(&part?.data);
    }
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<&str> = console.lines().collect();
    for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
        patina_daemon::say!("console: {line}");
    }
    let reason = if view::has_ended(&vm) { vm.end_reason } else { "vmmd says no more".to_owned() };
    Ok(CtlError::EndedEarly { name, reason })
}
