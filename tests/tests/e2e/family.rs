//! A guest and its clones, for the stories about cloning. One guest is booted for all of these
//! stories, and each story ends the clones that it created.

use crate::{
    Outcome,
    stage::{Stage, explain},
};
use libtest_mimic::Failed;
use patina_tests::{host::Host, vm::Vm};
use serde_json::Value;
use std::{
    fmt, iter,
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

/// The name of the guest that is cloned.
pub const PARENT: &str = "adam";

/// The family, as it stands when a story begins: the parent alone.
pub struct Family<'a> {
    /// Where it runs.
    pub host: &'a Host,
    /// The VM that was booted.
    pub parent: Vm<'a>,
}

/// Runs a story with the family's parent; a failure tells what the guests printed, and the clones
/// go in any case.
pub fn with_family(stage: &Stage, story: fn(&Family<'_>) -> Outcome) -> Outcome {
    let family = Family { host: stage.host()?, parent: stage.parent()? };
    let told = story(&family).map_err(|failed| {
        let names = family.clone_names().unwrap_or_default();
        let logs = names.iter().take(4).map(String::as_str).chain([PARENT]);
        let logs: Vec<String> =
            logs.map(|name| format!("== {name}\n{}", explain(family.host, name))).collect();
        Failed::from(format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n")))
    });
    let ended = family.end_clones();
    told.and(ended)
}

impl<'a> Family<'a> {
    /// Clones the parent from outside; the clones are ready.
    pub fn clone(&self, count: usize) -> Result<Vec<Vm<'a>>, Failed> {
        let count = count.to_string();
        self.made(&["clone", PARENT, "--count", &count, "--timeout", "300"])
    }

    /// What `vmctl clone` with these arguments has made.
    pub fn made(&self, arguments: &[&str]) -> Result<Vec<Vm<'a>>, Failed> {
        let made = self.host.json(arguments)?;
        let clones = made["clones"].as_array().ok_or("no clones")?;
        clones
            .iter()
            .map(|clone| match (&clone["name"], &clone["state"]) {
                (Value::String(name), Value::String(state)) if state == "ready" => Ok(self.host.vm(name)),
                _ => Err(format!("a clone is not ready: {clone}").into()),
            })
            .collect()
    }

    /// The member of the family with this vmid.
    pub fn member(&self, vmid: u32) -> Vm<'a> {
        self.host.vm(&format!("{PARENT}.{vmid}"))
    }

    /// The member with this vmid, once it is ready.
    pub fn ready(&self, vmid: u32) -> Result<Vm<'a>, Failed> {
        let vm = self.member(vmid);
        vm.wait_ready()?;
        Ok(vm)
    }

    /// The names of all clones that are still known.
    pub fn clone_names(&self) -> Result<Vec<String>, Failed> {
        let all = self.host.json(&["ls"])?;
        let all = all.as_array().ok_or("vmctl ls prints no list")?;
        let prefix = format!("{PARENT}.");
        let names = all.iter().filter_map(|vm| vm["name"].as_str());
        Ok(names.filter(|name| name.starts_with(&prefix)).map(str::to_owned).collect())
    }

    fn end_clones(&self) -> Outcome {
        let names = self.clone_names()?;
        if !names.is_empty() {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.host.call(&[&["rm", "-f"], &names[..]].concat())?;
        }
        Ok(())
    }
}

/// Does this in each VM, in two at a time: a guest seldom has work for more than one CPU. What came
/// of it, in the order of the VMs; of several failures the first.
pub fn in_each<T: Send>(
    vms: &[&Vm<'_>],
    work: impl Fn(&Vm<'_>) -> Result<T, Failed> + Sync,
) -> Result<Vec<T>, Failed> {
    let waiting = Mutex::new(vms.iter().enumerate());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let in_turn = || iter::from_fn(next).map(|(at, vm)| (at, work(vm))).collect::<Vec<_>>();
    let mut done: Vec<_> = thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(in_turn));
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Fails with what was expected and what was found instead. The logs of all guests are added to a
/// failure: no panic takes them away.
pub fn require(holds: bool, expected: impl fmt::Display, found: impl fmt::Display) -> Outcome {
    if holds { Ok(()) } else { Err(format!("expected: {expected}; found: {found}").into()) }
}

/// As [`require`], for a value that must equal the expected one. `what` names the value.
pub fn require_eq<F, E>(what: impl fmt::Display, found: F, expected: E) -> Outcome
where
    F: PartialEq<E> + fmt::Debug,
    E: fmt::Debug,
{
    require(found == expected, format_args!("{what} is {expected:?}"), format_args!("{found:?}"))
}
