//! Processes are killed and links are cut at each step of a call for clones on three hosts. After
//! each round all of it is as the stores say.
//!
//! ```text
//!  ticket ▶ the guest calls ▶ frozen ▶ SpawnClones ▶ memory arrives ▶ sync, join or kill
//!     a fault at one of these steps ▶ mended ▶ settled ▶ audit ▶ the clones go ▶ audit
//! ```
//!
//! A table says which fault happens at which step. `PATINA_FAILURES=all` takes all pairs, and a
//! part of a round's name those that have it.

use crate::{
    Outcome, Story,
    family::{require, require_eq},
    stage::Stage,
};
use libtest_mimic::Failed;
use patina_tests::{
    audit::{self, Live, Ways},
    host::{Host, HostError},
    hosts::{Hosts, Place},
    interrupt, process,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    env, fmt, fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

pub const STORIES: &[Story] = stories![whatever_fails_at_whichever_step_nothing_is_left_half_made];

/// Which rounds there are.
const ROUNDS: &str = "PATINA_FAILURES";
/// The VM that is cloned, on the first host.
const PARENT: &str = "adam";
/// The host of the parent, and one of the others: on that one clones fail.
const FIRST: u8 = 0;
const OTHER: u8 = 1;

/// How long what fails stays so, if the call does not end before.
const CUT_FOR: Duration = Duration::from_secs(3);
/// How long a call for clones may take, whatever fails.
const CALL_MAX: Duration = Duration::from_secs(45);
/// How long hosts may take until all is as the stores say.
const SETTLED_WITHIN: Duration = Duration::from_secs(75);
/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for a moment that is soon over, and for what takes its time.
const AT_ONCE: Duration = Duration::from_millis(1);
const SOON: Duration = Duration::from_millis(100);

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A process is killed.
    FirstVmmd,
    OtherVmmd,
    FirstPager,
    OtherPager,
    ParentVmm,
    CloneVmm,
    Scheduler,
    /// A host's cable is pulled.
    OtherCable,
    /// A link is cut, both ways.
    FirstAndScheduler,
    OtherAndScheduler,
    FirstAndOther,
    /// A link is cut one way.
    FirstToOther,
    OtherToFirst,
}

impl Fault {
    /// Whether a link fails, and no process.
    fn is_cut(self) -> bool {
        matches!(
            self,
            Self::OtherCable
                | Self::FirstAndScheduler
                | Self::OtherAndScheduler
                | Self::FirstAndOther
                | Self::FirstToOther
                | Self::OtherToFirst
        )
    }
}

/// When it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The guest has called, and is not frozen.
    Asked,
    /// It was frozen, and no other host knows of it.
    Frozen,
    /// Another host makes clones.
    Spawning,
    /// The clones run, and their memory arrives.
    Filling,
    /// The clones wait for their parent.
    Sync,
    /// The clones leave what their parent waits for.
    Join,
    /// The clones are killed.
    Kill,
}

const FAULTS: [Fault; 13] = [
    Fault::FirstVmmd,
    Fault::OtherVmmd,
    Fault::FirstPager,
    Fault::OtherPager,
    Fault::ParentVmm,
    Fault::CloneVmm,
    Fault::Scheduler,
    Fault::OtherCable,
    Fault::FirstAndScheduler,
    Fault::OtherAndScheduler,
    Fault::FirstAndOther,
    Fault::FirstToOther,
    Fault::OtherToFirst,
];

const STEPS: [Step; 7] =
    [Step::Asked, Step::Frozen, Step::Spawning, Step::Filling, Step::Sync, Step::Join, Step::Kill];

/// The rounds of every run: each fault and each step at least once. Those whose leases last longest
/// come first.
const CHOSEN: [Round; 13] = [
    Round(Fault::FirstVmmd, Step::Spawning),
    Round(Fault::OtherPager, Step::Filling),
    Round(Fault::FirstPager, Step::Filling),
    Round(Fault::FirstAndOther, Step::Filling),
    Round(Fault::OtherCable, Step::Join),
    Round(Fault::OtherVmmd, Step::Spawning),
    Round(Fault::FirstToOther, Step::Spawning),
    Round(Fault::OtherToFirst, Step::Spawning),
    Round(Fault::CloneVmm, Step::Sync),
    Round(Fault::FirstAndScheduler, Step::Frozen),
    Round(Fault::OtherAndScheduler, Step::Kill),
    Round(Fault::Scheduler, Step::Asked),
    Round(Fault::ParentVmm, Step::Filling),
];

/// A fault at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Round(Fault, Step);

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{:?}", self.0, self.1)
    }
}

impl Round {
    /// Whether there is something to fail at that step.
    fn is_possible(self) -> bool {
        let has_clones = matches!(self.1, Step::Filling | Step::Sync | Step::Join | Step::Kill);
        match self.0 {
            Fault::CloneVmm | Fault::OtherPager | Fault::FirstPager => has_clones,
            _ => true,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        let of = |fault| STEPS.into_iter().map(move |step| Self(fault, step));
        FAULTS.into_iter().flat_map(of).filter(|round| round.is_possible())
    }

    fn wanted() -> Vec<Self> {
        match env::var(ROUNDS).as_deref() {
            Err(_) | Ok("") => CHOSEN.to_vec(),
            Ok("all") => Self::all().collect(),
            Ok(part) => Self::all().filter(|round| round.to_string().contains(part)).collect(),
        }
    }
}

fn whatever_fails_at_whichever_step_nothing_is_left_half_made(stage: &Stage) -> Outcome {
    let options = ["--max-vms", "8", "--warm", "0"];
    let mut hosts = Hosts::start(stage.setup(), &options)?;
    let told = all_rounds(&mut hosts);
    let logs: Vec<_> = hosts.hosts.iter().map(Host::vmmd_log).chain([hosts.scheduler.log()]).collect();
    let stopped = hosts.stop();
    told.map_err(|failed| format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n==\n")))?;
    Ok(stopped?)
}

fn all_rounds(hosts: &mut Hosts) -> Outcome {
    begin(hosts)?;
    let rounds = Round::wanted();
    require(!rounds.is_empty(), format!("rounds whose name has {ROUNDS}"), "none")?;
    let mut failed = Vec::new();
    for round in rounds {
        let begun = Instant::now();
        let told = one_round(hosts, round);
        let took = begun.elapsed();
        match told {
            Ok(()) => patina_daemon::say!("{round}: {took:.1?}"),
            Err(error) => {
                let text = format!("{round}: {}", error.message().unwrap_or("failed"));
                patina_daemon::say!("{text} ({took:.1?})");
                failed.push(text);
                start_over(hosts)?;
            }
        }
    }
    let all = "all rounds end well";
    require(failed.is_empty(), all, failed.join("\n"))?;
    // What it started from was its own.
    remove(&hosts.hosts[0], |_| true)?;
    settled("at the end no layer is lent", SETTLED_WITHIN, || no_layers(hosts))
}

/// A parent with some memory of its own, and a hook by which it says that it is about to be cloned.
fn begin(hosts: &Hosts) -> Outcome {
    let parent = hosts.hosts[0].run(PARENT, &[])?;
    parent.sh("dd if=/dev/urandom of=/tmp/before bs=64k count=4 2> /dev/null; mkdir -p /etc/gridcentric")?;
    let hook =
        "#!/bin/sh\necho asked $(cat /tmp/round) > /dev/console\nif test -e /tmp/slow; then sleep 1; fi\n";
    parent.put("/etc/gridcentric/pre-clone", hook.as_bytes())?;
    let call = "gc clone $1 --json > /tmp/said 2> /tmp/why\n\
                code=$?\n\
                if ! grep -q '\"vmid\":[1-9]' /tmp/said; then echo answered $(cat /tmp/round) $code > /dev/console; fi\n";
    parent.put("/tmp/call", call.as_bytes())?;
    parent.sh("chmod 755 /etc/gridcentric/pre-clone")?;
    Ok(())
}

/// After a round that has failed, the next one has other VMs.
fn start_over(hosts: &mut Hosts) -> Outcome {
    for host in &mut hosts.hosts {
        if host.vmctl(&["ls"]).is_ok_and(|listed| listed.code == 0) {
            continue;
        }
        host.kill_vmmd()?;
        host.start_vmmd()?;
    }
    for host in &hosts.hosts {
        remove(host, |_| true)?;
    }
    let tickets = hosts.json(&["ticket", "ls"])?;
    let ids = tickets.as_array().into_iter().flatten().filter_map(|ticket| ticket["id"].as_str());
    ids.into_iter().try_for_each(|ticket| release(hosts, ticket))?;
    begin(hosts)
}

fn remove(host: &Host, is_wanted: impl Fn(&str) -> bool) -> Outcome {
    let listed = host.json(&["ls"])?;
    let names = listed.as_array().into_iter().flatten().filter_map(|vm| vm["name"].as_str());
    let names: Vec<_> = names.filter(|name| is_wanted(name)).collect();
    if !names.is_empty() {
        host.call(&[&["rm", "-f"], &names[..]].concat())?;
    }
    Ok(())
}

/// A round's call. The guest knows it by its ticket.
struct Call {
    round: Round,
    ticket: String,
    /// The memory of the parent.
    before: String,
    /// Up to where the first host and the other one had logged before.
    logged: [u64; 2],
}

fn one_round(hosts: &mut Hosts, round: Round) -> Outcome {
    let call = prepare(hosts, round)?;
    let begins_late = matches!(round.1, Step::Sync | Step::Join | Step::Kill);
    start_call(hosts, &call)?;
    if begins_late {
        let answered = answer_of(hosts, &call, CALL_MAX)?;
        require_eq("the answer", answered, "0".to_owned())?;
        begin_late(hosts, &call)?;
    } else {
        reach(hosts, &call)?;
    }
    break_it(hosts, &call)?;
    // It waits for hosts that cannot be reached.
    let kill = ["kill", "--ticket", &call.ticket];
    let killing = (round.1 == Step::Kill).then(|| hosts.vmctl_command(&kill).stdout(Stdio::null()).spawn());
    let killing = killing.transpose()?;
    if !begins_late {
        drop(answer_of(hosts, &call, CUT_FOR));
    } else if round.0.is_cut() {
        // What is lost has no other end.
        thread::sleep(CUT_FOR);
    }
    mend(hosts, round)?;
    if let Some(mut killing) = killing {
        // What came of it depends on what has failed: it is called again.
        let ended = process::wait(&mut killing, PATIENCE)?;
        require(ended.is_some(), "the call for the clones' end ends", "it does not")?;
    }
    let told = if round.0 == Fault::ParentVmm { None } else { Some(told(hosts, &call)?) };
    answers(hosts, &call, told.as_ref())?;
    if begins_late {
        end_late(hosts, &call)?;
    }
    release(hosts, &call.ticket)?;
    settled("hosts and scheduler agree", SETTLED_WITHIN, || differences(hosts, Ways::Announced))?;
    end(hosts, &call)
}

/// A ticket that no call has used could be used for a later one.
fn release(hosts: &Hosts, ticket: &str) -> Outcome {
    let known = hosts.json(&["ticket", "inspect", ticket])?;
    if known["state"] == "granted" {
        hosts.call(&["ticket", "release", ticket])?;
    }
    Ok(())
}

fn prepare(hosts: &Hosts, round: Round) -> Result<Call, Failed> {
    let parent = hosts.hosts[0].vm(PARENT);
    let family = parent.field("family")?;
    let request = ["ticket", "request", "--max-cpus", "3", "--min-vms", "3", "--family", &family];
    let size = ["--vcpus", "1", "--memory", "256M", "--anywhere", "--policy", "spread"];
    let granted = hosts.json(&[&request[..], &size[..]].concat())?;
    let places = granted["placements"].as_array().map_or(0, Vec::len);
    require(places == 3, "a ticket on three hosts", &granted)?;
    let ticket = granted["id"].as_str().unwrap_or_default().to_owned();
    let slow = if round.1 == Step::Asked { "touch" } else { "rm -f" };
    let before = parent.sh(&format!("{slow} /tmp/slow; echo {ticket} > /tmp/round; md5sum < /tmp/before"))?;
    let at = |host: u8| Ok::<_, HostError>(hosts.hosts[usize::from(host)].logged_since(u64::MAX)?.1);
    let logged = [at(FIRST)?, at(OTHER)?];
    Ok(Call { round, ticket, before, logged })
}

fn start_call(hosts: &Hosts, call: &Call) -> Outcome {
    let script = format!("setsid sh /tmp/call {} < /dev/null > /dev/null 2>&1 &", call.ticket);
    hosts.hosts[0].vm(PARENT).sh(&script)?;
    Ok(())
}

/// Waits until the call has come to the step.
fn reach(hosts: &Hosts, call: &Call) -> Outcome {
    let has = |host: u8, text: &str| {
        let from = call.logged[usize::from(host)];
        Ok::<_, Failed>(hosts.hosts[usize::from(host)].logged_since(from)?.0.contains(text))
    };
    until(&format!("the step {:?}", call.round.1), PATIENCE, AT_ONCE, || match call.round.1 {
        Step::Asked => Ok(console(hosts).contains(&format!("asked {}", call.ticket))),
        Step::Frozen => has(FIRST, "the freeze has ended"),
        Step::Spawning => has(OTHER, "another host asks for clones"),
        Step::Filling => has(OTHER, "made clones of a VM of another host"),
        Step::Sync | Step::Join | Step::Kill => Ok(true),
    })
}

/// What the clones do that have been made.
fn begin_late(hosts: &Hosts, call: &Call) -> Outcome {
    let work = match call.round.1 {
        Step::Sync => "until gc sync; do sleep 1; done; echo > /tmp/met",
        Step::Join => "until echo -n of $(gc vmid) | gc join --status 7 --data -; do sleep 1; done",
        _ => return Ok(()),
    };
    let clones = clones(hosts)?;
    require(clones.len() == 3, "three clones", format!("{clones:?}"))?;
    for clone in clones {
        let vm = hosts.hosts[usize::from(clone.host)].vm(&clone.name);
        vm.wait_ready()?;
        vm.sh(&format!("setsid sh -c '{work}' < /dev/null > /dev/null 2>&1 &"))?;
    }
    Ok(())
}

/// The same from the parent's side, now that all is mended.
fn end_late(hosts: &Hosts, call: &Call) -> Outcome {
    let ticket = &call.ticket;
    let victim = usize::from(call.round.0 == Fault::CloneVmm);
    match call.round.1 {
        Step::Kill => {
            hosts.call(&["kill", "--ticket", ticket])?;
            settled("no clone lives", PATIENCE, || {
                Ok(clones(hosts)?.into_iter().map(|clone| clone.name).collect())
            })
        }
        _ if call.round.0 == Fault::ParentVmm => Ok(()),
        Step::Sync => {
            let parent = hosts.hosts[0].vm(PARENT);
            parent.sh(&format!("until gc sync {ticket} 60000; do sleep 1; done"))?;
            for clone in clones(hosts)? {
                let vm = hosts.hosts[usize::from(clone.host)].vm(&clone.name);
                vm.sh("until test -e /tmp/met; do sleep 0.1; done")?;
            }
            Ok(())
        }
        _ => {
            let parent = hosts.hosts[0].vm(PARENT);
            parent.sh(&format!(
                "rm -rf /tmp/left; until gc join {ticket} --data-dir /tmp/left; do sleep 1; done"
            ))?;
            let left: usize = parent.sh("cat /tmp/left/* | grep -o of | wc -l")?.parse()?;
            require(left + victim == 3, "what three clones have left", left)
        }
    }
}

fn break_it(hosts: &mut Hosts, call: &Call) -> Outcome {
    match call.round.0 {
        Fault::FirstVmmd => hosts.hosts[usize::from(FIRST)].kill_vmmd()?,
        Fault::OtherVmmd => hosts.hosts[usize::from(OTHER)].kill_vmmd()?,
        Fault::FirstPager => kill(&hosts.hosts[usize::from(FIRST)], "pager")?,
        Fault::OtherPager => kill(&hosts.hosts[usize::from(OTHER)], "pager")?,
        Fault::ParentVmm => {
            let pid = fs::read_to_string(parent_folder(hosts).join("vm.json"))?;
            let pid: Value = serde_json::from_str(&pid)?;
            kill_pid(pid["process"]["pid"].as_u64().ok_or("the parent's pid")?)?;
        }
        Fault::CloneVmm => kill(&hosts.hosts[usize::from(OTHER)], "vmm")?,
        Fault::Scheduler => hosts.scheduler.kill()?,
        Fault::OtherCable => hosts.plug(OTHER, false)?,
        fault => cut(hosts, fault, true)?,
    }
    Ok(())
}

fn mend(hosts: &mut Hosts, round: Round) -> Outcome {
    match round.0 {
        Fault::FirstVmmd => hosts.hosts[usize::from(FIRST)].start_vmmd()?,
        Fault::OtherVmmd => hosts.hosts[usize::from(OTHER)].start_vmmd()?,
        Fault::FirstPager | Fault::OtherPager | Fault::CloneVmm | Fault::ParentVmm => {}
        Fault::Scheduler => hosts.scheduler.start_again()?,
        Fault::OtherCable => hosts.plug(OTHER, true)?,
        fault => cut(hosts, fault, false)?,
    }
    Ok(())
}

/// Loses what some send to others, or does so no longer.
fn cut(hosts: &Hosts, fault: Fault, is_lost: bool) -> Outcome {
    let (first, other) = (Place::Host(FIRST), Place::Host(OTHER));
    let ways: &[_] = match fault {
        Fault::FirstAndScheduler => &[(first, Place::Scheduler), (Place::Scheduler, first)],
        Fault::OtherAndScheduler => &[(other, Place::Scheduler), (Place::Scheduler, other)],
        Fault::FirstAndOther => &[(first, other), (other, first)],
        Fault::FirstToOther => &[(first, other)],
        Fault::OtherToFirst => &[(other, first)],
        _ => &[],
    };
    for (from, to) in ways {
        hosts.lose(*from, *to, is_lost)?;
    }
    Ok(())
}

/// Kills all processes of a host that have this name.
fn kill(host: &Host, name: &str) -> Outcome {
    for (pid, _) in audit::processes(host)?.into_iter().filter(|(_, of)| of == name) {
        kill_pid(pid.into())?;
    }
    Ok(())
}

fn kill_pid(pid: u64) -> Outcome {
    let pid = Pid::from_raw(i32::try_from(pid)?).ok_or("a process has a number")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

fn parent_folder(hosts: &Hosts) -> std::path::PathBuf {
    hosts.hosts[0].state_dir().join("vms").join(PARENT)
}

/// What the parent's console has, whether its vmmd runs or not.
fn console(hosts: &Hosts) -> String {
    fs::read_to_string(parent_folder(hosts).join("console.log")).unwrap_or_default()
}

/// With which code the guest's call ended.
fn answer_of(hosts: &Hosts, call: &Call, within: Duration) -> Result<String, Failed> {
    let text = format!("answered {} ", call.ticket);
    let code = || {
        let all = console(hosts);
        let (_, rest) = all.rsplit_once(&text)?;
        Some(rest.lines().next()?.trim_end().to_owned())
    };
    until("the guest's call ends", within, SOON, || Ok(code().is_some()))?;
    Ok(code().unwrap_or_default())
}

/// What the guest was told: who was made, and who was not.
struct Told {
    made: BTreeSet<u64>,
    failed: BTreeSet<u64>,
    text: String,
}

/// The parent runs on, and its call has ended.
fn told(hosts: &Hosts, call: &Call) -> Result<Told, Failed> {
    answer_of(hosts, call, CALL_MAX)?;
    let parent = hosts.hosts[0].vm(PARENT);
    // One program: a guest takes its time to begin one.
    let text = parent.sh("md5sum < /tmp/before; cat /tmp/said /tmp/why")?;
    let mut lines = text.lines();
    require_eq("the parent's memory", lines.next().unwrap_or_default(), call.before.as_str())?;
    let said: Value = serde_json::from_str(lines.next().unwrap_or_default()).unwrap_or_default();
    let list = |field: &str| said[field].as_array().cloned().unwrap_or_default();
    let made = list("clones").iter().filter_map(Value::as_u64).collect();
    let failed = list("failed").iter().filter_map(|failed| failed[0].as_u64()).collect();
    let text = text.lines().skip(1).collect::<Vec<_>>().join("; ");
    Ok(Told { made, failed, text })
}

fn clones(hosts: &Hosts) -> Result<Vec<Live>, Failed> {
    let is_clone = |vm: &Live| vm.name.starts_with(&format!("{PARENT}."));
    Ok(audit::live(hosts)?.into_iter().filter(is_clone).collect())
}

/// Every clone that runs answers with its parent's memory, and those run that the guest was told
/// of.
fn answers(hosts: &Hosts, call: &Call, told: Option<&Told>) -> Outcome {
    let may_end = matches!(call.round.1, Step::Join | Step::Kill);
    let mut live = BTreeSet::new();
    for clone in clones(hosts)? {
        let vm = hosts.hosts[usize::from(clone.host)].vm(&clone.name);
        let asked = vm.wait_ready().and_then(|()| vm.sh("md5sum < /tmp/before"));
        match asked {
            Ok(memory) => require_eq(&clone.name, memory, call.before.clone())?,
            Err(error) if !may_end => return Err(format!("{clone:?}: {error}; {}", vm.inspect()?).into()),
            Err(_) => {}
        }
        live.insert(clone.vmid());
    }
    let Some(told) = told else { return Ok(()) };
    let is_victim = call.round.0 == Fault::CloneVmm;
    let missing = told.made.difference(&live).count();
    require(
        may_end || missing <= usize::from(is_victim),
        "clones run that the guest was told of",
        format!("{live:?}; told {}", told.text),
    )?;
    let half: Vec<_> = told.failed.intersection(&live).collect();
    require(half.is_empty(), "no clone runs that the guest was told to have failed", format!("{half:?}"))
}

fn differences(hosts: &Hosts, ways: Ways) -> Result<Vec<String>, Failed> {
    Ok(audit::differences(hosts, ways)?)
}

/// Ends what is left of a round, and looks whether only the parent is left.
fn end(hosts: &Hosts, call: &Call) -> Outcome {
    let is_gone = call.round.0 == Fault::ParentVmm;
    for host in &hosts.hosts {
        remove(host, |name| is_gone || name != PARENT)?;
    }
    settled("only the parent is left", SETTLED_WITHIN, || {
        let mut found = differences(hosts, Ways::Live)?;
        found.extend(audit::live(hosts)?.into_iter().map(|vm| vm.name).filter(|name| name != PARENT));
        for (number, host) in hosts.hosts.iter().enumerate().skip(1) {
            let left = audit::layers(host)?;
            if left > 0 {
                found.push(format!("host {number} has {left} layers"));
            }
        }
        Ok(found)
    })?;
    if is_gone { begin(hosts) } else { Ok(()) }
}

/// Layers that pagers keep although nobody needs them.
fn no_layers(hosts: &Hosts) -> Result<Vec<String>, Failed> {
    let mut found = Vec::new();
    for (number, host) in hosts.hosts.iter().enumerate() {
        let left = audit::layers(host)?;
        if left > 0 {
            found.push(format!("the pager of host {number} has {left} layers"));
        }
    }
    Ok(found)
}

/// Waits until nothing differs.
fn settled(
    what: &str,
    within: Duration,
    mut differs: impl FnMut() -> Result<Vec<String>, Failed>,
) -> Outcome {
    let begun = Instant::now();
    loop {
        let found = match differs() {
            Ok(found) => found,
            Err(error) if interrupt::requested() => return Err(error),
            Err(error) => vec![error.message().unwrap_or("failed").to_owned()],
        };
        if found.is_empty() {
            return Ok(());
        }
        require(begun.elapsed() < within, what, found.join("; "))?;
        thread::sleep(SOON);
    }
}

/// Looks until it is so.
fn until(
    what: &str,
    within: Duration,
    pause: Duration,
    mut is_so: impl FnMut() -> Result<bool, Failed>,
) -> Outcome {
    let begun = Instant::now();
    while !is_so()? {
        require(begun.elapsed() < within, what, "it does not happen")?;
        thread::sleep(pause);
    }
    Ok(())
}
