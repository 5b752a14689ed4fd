//! `vmctl clone`: clones a running VM.

use super::{
    Context,
    cluster::{Care, Where},
};
use crate::{
    client::Client,
    error::CtlError,
    output::{self, Format},
    view::VmView,
};
use patina_proto::v1::{
    self, CloneOutcome, CloneVmRequest, Prepare, Vm, WaitVmRequest, clone_outcome::Outcome,
    wait_vm_request::Until,
};
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::Status;
use uuid::Uuid;

/// The header of the table.
const HEADER: [&str; 7] = ["VMID", "NAME", "IP", "STATE", "EXECUTING", "READY", "HOST"];
/// The state of a clone that was not made.
const FAILED: &str = "failed";

/// Arguments of `vmctl clone`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// The VM: it must be ready, and goes on.
    name: String,
    /// How many clones, 1 to 256 [default: 1, or as many as the ticket is for].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    count: Option<u32>,
    /// Clone with a ticket, as many as it is for.
    #[arg(long, value_name = "UUID")]
    ticket: Option<Uuid>,
    /// The caller's number for the call: a call that is repeated with it gets the same clones, and
    /// no more.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Let the guest's other processes run in a clone before it has an identity of its own.
    #[arg(long)]
    no_hold: bool,
    /// Do not have the guest prepare: its pre-clone hook does not run, nothing is held, and its
    /// agent need not answer.
    #[arg(long)]
    no_prepare: bool,
    /// Wait until each clone is ready: this is the default.
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Do not wait until the clones are ready.
    #[arg(long, alias = "detach", overrides_with = "wait")]
    no_wait: bool,
    /// Wait for the clones at most this long, seconds; then the exit code is 124, and the clones
    /// run on.
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout: Option<u64>,
}

/// What came of it, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct ClonesView {
    freeze_us: u64,
    pause_us: u64,
    copied_kib: u64,
    copied_beside_kib: u64,
    clones: Vec<CloneView>,
}

/// One clone. A clone that was not made has a vmid and an error only.
#[derive(Debug, Clone, Serialize)]
pub struct CloneView {
    vmid: u32,
    pub name: String,
    ip: String,
    state: String,
    executing_after_us: u64,
    ready_after_us: u64,
    /// The name of the other host that it is on; none: the one that was asked.
    host: Option<String>,
    error: Option<String>,
    #[serde(skip)]
    code: u8,
}

/// Clones the VM, prints the clones.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let name = arguments.name.clone();
    let mut client = context.client_of(arguments.place, &name, Care::Change).await?;
    let mut made = client.clone_vm(request(&arguments)).await?.into_inner();
    let wait = !arguments.no_wait || arguments.wait;
    let timeout_ms = wait.then(|| arguments.timeout.map_or(0, |seconds| seconds * 1000));
    let clones = follow(&client, std::mem::take(&mut made.clones), timeout_ms).await;
    let v1::CloneVmResponse { freeze_us, pause_us, copied_kib, copied_beside_kib, .. } = made;
    let view = ClonesView { freeze_us, pause_us, copied_kib, copied_beside_kib, clones };
    match context.format {
        Format::Json => output::json(&view)?,
        Format::Table => {
            output::table(&HEADER, view.clones.iter().map(CloneView::row))?;
            patina_daemon::say!("{}", view.summary(&name));
        }
    }
    report("clone", &view.clones)
}

fn request(arguments: &Arguments) -> CloneVmRequest {
    CloneVmRequest {
        name: arguments.name.clone(),
        count: arguments.count.unwrap_or(u32::from(arguments.ticket.is_none())),
        prepare: prepare(arguments).into(),
        ticket: arguments.ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
        ticket_epoch: 0,
        request_id: arguments.request_id.clone().unwrap_or_default(),
    }
}

fn prepare(arguments: &Arguments) -> Prepare {
    match (arguments.no_prepare, arguments.no_hold) {
        (true, _) => Prepare::None,
        (false, true) => Prepare::NoHold,
        (false, false) => Prepare::Hold,
    }
}

/// Waits for all clones at the same time, if at all.
pub async fn follow(client: &Client, made: Vec<CloneOutcome>, timeout_ms: Option<u64>) -> Vec<CloneView> {
    let mut waits = JoinSet::new();
    let mut clones = Vec::with_capacity(made.len());
    for CloneOutcome { vmid, outcome, executing_after_us } in made {
        match (outcome, timeout_ms) {
            // Only its own host can tell when it is ready.
            (Some(Outcome::Vm(vm)), _) if !vm.host.is_empty() => {
                clones.push(CloneView::made(vm, executing_after_us, None));
            }
            (Some(Outcome::Vm(vm)), Some(timeout_ms)) => {
                waits.spawn(wait_ready(client.clone(), vm, executing_after_us, timeout_ms));
            }
            (Some(Outcome::Vm(vm)), None) => clones.push(CloneView::made(vm, executing_after_us, None)),
            (Some(Outcome::Error(error)), _) => clones.push(CloneView::failed(vmid, error)),
            (None, _) => clones.push(CloneView::failed(vmid, "vmmd says neither what it is nor why".into())),
        }
    }
    clones.extend(waits.join_all().await);
    clones.sort_by_key(|clone| clone.vmid);
    clones
}

async fn wait_ready(mut client: Client, vm: Vm, executing_after_us: u64, timeout_ms: u64) -> CloneView {
    let request = WaitVmRequest { name: vm.name.clone(), until: Until::Ready.into(), timeout_ms };
    match client.wait_vm(request).await {
        Ok(ready) => CloneView::made(ready.into_inner(), executing_after_us, None),
        Err(status) => CloneView::made(vm, executing_after_us, Some(status)),
    }
}

/// Says on standard error what is wrong with each clone that is not as it was to be; `what` they
/// are is said in words.
pub fn report(what: &str, clones: &[CloneView]) -> Result<(), CtlError> {
    let wrong: Vec<(&CloneView, &String)> =
        clones.iter().filter_map(|clone| Some((clone, clone.error.as_ref()?))).collect();
    for (clone, error) in &wrong {
        patina_daemon::say!("error: {what} {}: {error}", clone.vmid);
    }
    match wrong.first() {
        None => Ok(()),
        Some((first, _)) => {
            Err(CtlError::Some { what: "VMs", failed: wrong.len(), all: clones.len(), code: first.code })
        }
    }
}

impl ClonesView {
    /// What it has cost, in one line.
    fn summary(&self, name: &str) -> String {
        let executing = self.clones.iter().filter(|clone| clone.executing_after_us > 0);
        let beside = match self.copied_beside_kib {
            0 => String::new(),
            kib => format!(", {kib} KiB beside it"),
        };
        let last = executing.clone().map(|clone| clone.executing_after_us).max();
        format!(
            "{name}: paused for {}, {} KiB copied{}; {} clones executing{}",
            milliseconds(self.pause_us),
            self.copied_kib,
            beside,
            executing.count(),
            last.map(|last| format!(" within {}", milliseconds(last))).unwrap_or_default()
        )
    }
}

impl CloneView {
    fn made(vm: Vm, executing_after_us: u64, waited: Option<Status>) -> Self {
        let host = Some(vm.host.clone()).filter(|host| !host.is_empty());
        let view = VmView::from(vm);
        let failed = waited.map(CtlError::from);
        Self {
            vmid: view.vmid,
            name: view.name,
            ip: view.ip,
            state: view.state,
            executing_after_us,
            ready_after_us: view.ready_after_us,
            host,
            code: failed.as_ref().map_or(0, CtlError::exit_code),
            error: failed.map(|error| error.to_string()),
        }
    }

    fn failed(vmid: u32, error: String) -> Self {
        let (name, ip, state) = (String::new(), String::new(), FAILED.to_owned());
        let (executing_after_us, ready_after_us) = (0, 0);
        let error = Some(error);
        Self { vmid, name, ip, state, executing_after_us, ready_after_us, host: None, error, code: 1 }
    }

    fn row(&self) -> Vec<String> {
        let after = |us| if us == 0 { "-".to_owned() } else { milliseconds(us) };
        vec![
            self.vmid.to_string(),
            self.name.clone(),
            self.ip.clone(),
            self.state.clone(),
            after(self.executing_after_us),
            after(self.ready_after_us),
            self.host.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}

fn milliseconds(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use patina_proto::v1::VmState;

    fn vm(vmid: u32) -> Vm {
        Vm { vmid, name: format!("web.{vmid}"), state: VmState::Ready.into(), ..Vm::default() }
    }

    #[test]
    fn each_clone_has_its_own_outcome() {
        let late = CloneView::made(vm(1), 1540, Some(Status::deadline_exceeded("late")));
        let clones = [late, CloneView::made(vm(2), 2090, None), CloneView::failed(3, "no room".into())];
        assert_eq!(clones[1].row()[..2], ["2".to_owned(), "web.2".to_owned()]);
        assert_eq!(clones[2].state, FAILED);
        let error = report("clone", &clones).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("2 of 3 VMs failed", 124));
        assert!(report("clone", &clones[1..2]).is_ok());
        assert_eq!(clones[1].row()[4..], ["2.0 ms".to_owned(), "-".to_owned(), "-".to_owned()]);
        let elsewhere = CloneView::made(Vm { host: "h2".into(), ..vm(4) }, 3000, None);
        assert_eq!(elsewhere.row()[4..], ["3.0 ms".to_owned(), "-".to_owned(), "h2".to_owned()]);
        let view = ClonesView {
            freeze_us: 9000,
            pause_us: 950,
            copied_kib: 12,
            copied_beside_kib: 34,
            clones: clones.into(),
        };
        let summary =
            "web: paused for 0.9 ms, 12 KiB copied, 34 KiB beside it; 2 clones executing within 2.0 ms";
        assert_eq!(view.summary("web"), summary);
    }

    #[test]
    fn a_ticket_says_how_many_unless_a_number_does() {
        let asked = |words: &str| {
            let line = format!("vmctl clone web {words}");
            let parsed = crate::cli::Arguments::parse_from(line.split_whitespace());
            let crate::cli::Command::Clone(arguments) = parsed.command else { panic!("not clone") };
            let request = request(&arguments);
            (request.count, request.ticket)
        };
        let uuid = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11".to_owned();
        assert_eq!(asked(""), (1, String::new()));
        assert_eq!(asked("-n 3"), (3, String::new()));
        assert_eq!(asked(&format!("--ticket {uuid}")), (0, uuid.clone()));
        assert_eq!(asked(&format!("--ticket {uuid} -n 3")), (3, uuid));
    }

    #[test]
    fn the_guest_prepares_as_the_options_say() {
        let asked = |words: &str| {
            let line = format!("vmctl clone web {words}");
            let parsed = crate::cli::Arguments::parse_from(line.split_whitespace());
            let crate::cli::Command::Clone(arguments) = parsed.command else { panic!("not clone") };
            request(&arguments).prepare()
        };
        assert_eq!(asked(""), Prepare::Hold);
        assert_eq!(asked("--no-hold"), Prepare::NoHold);
        assert_eq!(asked("--no-prepare"), Prepare::None);
        assert_eq!(asked("--no-prepare --no-hold"), Prepare::None);
    }

    #[test]
    fn json_has_what_the_table_has_and_the_error() {
        let json = serde_json::to_value(CloneView::failed(3, "no room".into())).unwrap();
        assert_eq!((&json["vmid"], &json["error"]), (&3.into(), &"no room".into()));
        let json = serde_json::to_value(CloneView::made(vm(2), 7, None)).unwrap();
        assert_eq!(json["executing_after_us"], 7);
        assert_eq!((&json["state"], &json["error"]), (&"ready".into(), &serde_json::Value::Null));
    }
}
