//! `vmctl clone`: copies of a VM that runs.

use super::Context;
use crate::{
    client::Client,
    error::CtlError,
    output::{self, Format},
    view::VmView,
};
use patina_proto::v1::{
    CloneOutcome, CloneVmRequest, Vm, WaitVmRequest, clone_outcome::Outcome, wait_vm_request::Until,
};
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::Status;

/// The header of the table.
const HEADER: [&str; 4] = ["VMID", "NAME", "IP", "STATE"];
/// The state of a clone that was not made.
const FAILED: &str = "failed";

/// Arguments of `vmctl clone`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The VM: it must be ready, and goes on.
    name: String,
    /// How many clones, 1 to 256.
    #[arg(short = 'n', long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    count: u32,
    /// Wait until each clone is ready: this is the default.
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Do not wait until the clones are ready.
    #[arg(long, alias = "detach", overrides_with = "wait")]
    no_wait: bool,
    /// Wait for the clones at most this long, seconds; then the exit code is 124, and the clones run on.
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout: Option<u64>,
}

/// What came of it, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct ClonesView {
    freeze_us: u64,
    clones: Vec<CloneView>,
}

/// One clone. A clone that was not made has a vmid and an error only.
#[derive(Debug, Serialize)]
struct CloneView {
    vmid: u32,
    name: String,
    ip: String,
    state: String,
    ready_after_us: u64,
    error: Option<String>,
    #[serde(skip)]
    code: u8,
}

/// Clones the VM, prints the clones.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut client = context.client().await?;
    let request = CloneVmRequest { name: arguments.name, count: arguments.count };
    let made = client.clone_vm(request).await?.into_inner();
    let wait = !arguments.no_wait || arguments.wait;
    let timeout_ms = wait.then(|| arguments.timeout.map_or(0, |seconds| seconds * 1000));
    let clones = follow(&client, made.clones, timeout_ms).await;
    let view = ClonesView { freeze_us: made.freeze_us, clones };
    match context.format {
        Format::Json => output::json(&view)?,
        Format::Table => output::table(&HEADER, view.clones.iter().map(CloneView::row))?,
    }
    report(&view.clones)
}

/// Waits for all clones at the same time, if at all.
async fn follow(client: &Client, made: Vec<CloneOutcome>, timeout_ms: Option<u64>) -> Vec<CloneView> {
    let mut waits = JoinSet::new();
    let mut clones = Vec::with_capacity(made.len());
    for CloneOutcome { vmid, outcome } in made {
        match (outcome, timeout_ms) {
            (Some(Outcome::Vm(vm)), Some(timeout_ms)) => {
                waits.spawn(wait_ready(client.clone(), vm, timeout_ms));
            }
            (Some(Outcome::Vm(vm)), None) => clones.push(CloneView::made(vm, None)),
            (Some(Outcome::Error(error)), _) => clones.push(CloneView::failed(vmid, error)),
            (None, _) => clones.push(CloneView::failed(vmid, "vmmd says neither what it is nor why".into())),
        }
    }
    clones.extend(waits.join_all().await);
    clones.sort_by_key(|clone| clone.vmid);
    clones
}

async fn wait_ready(mut client: Client, vm: Vm, timeout_ms: u64) -> CloneView {
    let request = WaitVmRequest { name: vm.name.clone(), until: Until::Ready.into(), timeout_ms };
    match client.wait_vm(request).await {
        Ok(ready) => CloneView::made(ready.into_inner(), None),
        Err(status) => CloneView::made(vm, Some(status)),
    }
}

/// Says on standard error what is wrong with each clone that is not as it was to be.
fn report(clones: &[CloneView]) -> Result<(), CtlError> {
    let wrong: Vec<(&CloneView, &String)> =
        clones.iter().filter_map(|clone| Some((clone, clone.error.as_ref()?))).collect();
    for (clone, error) in &wrong {
        eprintln!("error: clone {}: {error}", clone.vmid);
    }
    match wrong.first() {
        None => Ok(()),
        Some((first, _)) => Err(CtlError::Some { failed: wrong.len(), all: clones.len(), code: first.code }),
    }
}

impl CloneView {
    fn made(vm: Vm, waited: Option<Status>) -> Self {
        let view = VmView::from(vm);
        let failed = waited.map(CtlError::from);
        Self {
            vmid: view.vmid,
            name: view.name,
            ip: view.ip,
            state: view.state,
            ready_after_us: view.ready_after_us,
            code: failed.as_ref().map_or(0, CtlError::exit_code),
            error: failed.map(|error| error.to_string()),
        }
    }

    fn failed(vmid: u32, error: String) -> Self {
        let (name, ip, state) = (String::new(), String::new(), FAILED.to_owned());
        Self { vmid, name, ip, state, ready_after_us: 0, error: Some(error), code: 1 }
    }

    fn row(&self) -> Vec<String> {
        vec![self.vmid.to_string(), self.name.clone(), self.ip.clone(), self.state.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_proto::v1::VmState;

    fn vm(vmid: u32) -> Vm {
        Vm { vmid, name: format!("web.{vmid}"), state: VmState::Ready.into(), ..Vm::default() }
    }

    #[test]
    fn each_clone_has_its_own_outcome() {
        let late = CloneView::made(vm(1), Some(Status::deadline_exceeded("late")));
        let clones = [late, CloneView::made(vm(2), None), CloneView::failed(3, "no room".into())];
        assert_eq!(clones[1].row()[..2], ["2".to_owned(), "web.2".to_owned()]);
        assert_eq!(clones[2].state, FAILED);
        let error = report(&clones).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("2 of 3 VMs failed", 124));
        assert!(report(&clones[1..2]).is_ok());
    }

    #[test]
    fn json_has_what_the_table_has_and_the_error() {
        let json = serde_json::to_value(CloneView::failed(3, "no room".into())).unwrap();
        assert_eq!((&json["vmid"], &json["error"]), (&3.into(), &"no room".into()));
        let json = serde_json::to_value(CloneView::made(vm(2), None)).unwrap();
        assert_eq!((&json["state"], &json["error"]), (&"ready".into(), &serde_json::Value::Null));
    }
}
