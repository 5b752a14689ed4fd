//! The sockets of VMs. What comes from a vmm is not trusted: it may be the guest that writes.

use super::{FEW, Server, watch_output};
use crate::engine::{Engine, EngineError};
use crate::layer::Layer;
use crate::lines::{Lines, LinesError};
use crate::vm::Named;
use patina_control::config::{EXTENTS_MAX, LAYERS_MAX};
use patina_control::pager::{
    FromPager, Id, MAPPING_BYTES, PAGER_VMS_MAX, PagerToVm, VERSION, VmToPager, read_sealed,
};
use patina_daemon::chain;
use patina_daemon::lock;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// The socket of a VM.
#[derive(Debug)]
pub(super) struct Connection {
    id: Id,
    lines: Lines,
    /// The layers that it may name.
    layers: Vec<Arc<Layer>>,
    /// How long the VM had run when the pager got its socket.
    age: Duration,
    is_attached: bool,
    /// The vmm may send what it has sent before: it was asked for that.
    may_repeat: bool,
}

impl Connection {
    /// What `vmmd` is told of it. None: it is not served yet.
    pub(super) fn report(&self, engine: &Engine, serial: u64) -> Option<FromPager> {
        let vm = engine.vm(serial)?;
        Some(FromPager::Vm { vm: self.id.clone(), mappings: vm.mappings() })
    }
}

impl Server {
    /// Takes the socket of a VM over.
    pub(super) fn connect_vm(
        &mut self,
        id: Id,
        layers: &[Id],
        (age_ms, is_again): (u64, bool),
    ) -> Result<(), String> {
        let control = self.control.as_mut().ok_or("vmmd is gone")?;
        let [socket] = control.take::<1>().ok_or("its socket did not come with the line")?;
        if self.vms.values().any(|vm| vm.id == id) {
            return Err(EngineError::Exists.to_string());
        }
        if self.vms.len() >= PAGER_VMS_MAX {
            return Err(EngineError::Full(PAGER_VMS_MAX).to_string());
        }
        if !(1..=LAYERS_MAX).contains(&layers.len()) {
            return Err(format!("it has {} layers; the limits are 1 and {LAYERS_MAX}", layers.len()));
        }
        let find = |id: &Id| self.engine.layer(id).ok_or_else(|| format!("there is no layer {id}"));
        let layers = layers.iter().map(find).collect::<Result<_, _>>()?;
        let serial = self.engine.next_serial().map_err(|error| chain(&error))?;
        let lines =
            Lines::new(UnixStream::from(socket)).map_err(|error| format!("use its socket: {error}"))?;
        self.watch(lines.fd(), serial).map_err(|error| format!("watch its socket: {error}"))?;
        let age = Duration::from_millis(age_ms);
        let vm = Connection { id, lines, layers, age, is_attached: false, may_repeat: is_again };
        let vm = self.vms.entry(serial).insert_entry(vm).into_mut();
        if is_again && let Err(error) = vm.lines.send(&PagerToVm::AttachAgain, Vec::new()) {
            self.vm_gone(serial, chain(&error));
        }
        Ok(())
    }

    /// Serves a VM no longer. False: there is none of this name.
    pub(super) fn drop_vm(&mut self, id: &Id) -> bool {
        let Some(serial) = self.vms.iter().find(|(_, vm)| vm.id == *id).map(|(serial, _)| *serial) else {
            return false;
        };
        self.engine.detach(serial);
        self.vms.remove(&serial);
        true
    }

    /// A VM cannot be served, or not any longer.
    pub(super) fn vm_gone(&mut self, serial: u64, reason: String) {
        self.engine.detach(serial);
        if let Some(mut vm) = self.vms.remove(&serial) {
            patina_control::best_effort(
                vm.lines.send(&PagerToVm::Refused { reason: reason.clone() }, Vec::new()),
                "vmmd is told, too",
            );
            self.report(FromPager::VmGone { vm: vm.id, reason }, Vec::new());
        }
    }

    pub(super) fn serve_vm(&mut self, serial: u64) {
        if let Err(error) = self.read_vm(serial) {
            return self.vm_gone(serial, error);
        }
        if let Some(vm) = self.vms.get(&serial) {
            watch_output(&self.epoll, &vm.lines, serial);
        }
    }

    fn read_vm(&mut self, serial: u64) -> Result<(), String> {
        let words = |error: LinesError| chain(&error);
        let Some(vm) = self.vms.get_mut(&serial) else { return Ok(()) };
        vm.lines.flush().map_err(words)?;
        if !vm.lines.fill().map_err(words)? {
            return Ok(());
        }
        loop {
            let Some(vm) = self.vms.get_mut(&serial) else { return Ok(()) };
            let Some(line) = vm.lines.next_line().map_err(words)? else { return Ok(()) };
            let message = serde_json::from_slice(&line).map_err(|error| format!("read a line: {error}"))?;
            let answer = match message {
                VmToPager::Attach { .. } if vm.is_attached && std::mem::take(&mut vm.may_repeat) => {
                    drop(vm.lines.take::<2>().ok_or(FEW)?);
                    continue;
                }
                VmToPager::Attach { version, tracks_writes } => {
                    attach(&self.engine, serial, vm, version, tracks_writes)?
                }
                VmToPager::TrackWrites => track(&self.engine, serial)?,
            };
            if answer == PagerToVm::Attached
                && let Some(report) = vm.report(&self.engine, serial)
            {
                // Before the vmm: who knows from the vmm that it is served finds it so here.
                self.report(report, Vec::new());
            }
            let Some(vm) = self.vms.get_mut(&serial) else { return Ok(()) };
            vm.lines.send(&answer, Vec::new()).map_err(words)?;
        }
    }

    pub(super) fn tell_complete(&mut self, serial: u64, layer: u32, is_unregistered: bool) {
        let Some(vm) = self.vms.get_mut(&serial) else { return };
        let sent = vm.lines.send(&PagerToVm::Complete { layer, is_unregistered }, Vec::new());
        match sent {
            Ok(()) => watch_output(&self.epoll, &vm.lines, serial),
            Err(error) => self.vm_gone(serial, chain(&error)),
        }
    }
}

fn attach(
    engine: &Engine,
    serial: u64,
    vm: &mut Connection,
    version: u32,
    tracks_writes: bool,
) -> Result<PagerToVm, String> {
    if version != VERSION {
        return Err(format!("it is of version {version}, the pager of {VERSION}"));
    }
    if std::mem::replace(&mut vm.is_attached, true) {
        return Err("it attaches a second time".into());
    }
    let [userfaultfd, mappings] = vm.lines.take::<2>().ok_or(FEW)?;
    let mappings = read_sealed(&File::from(mappings), (EXTENTS_MAX * MAPPING_BYTES) as u64)
        .map_err(|error| format!("read its mappings: {error}"))?;
    let name = Named { serial, id: vm.id.clone(), age: vm.age };
    let layers = std::mem::take(&mut vm.layers);
    engine.attach(name, userfaultfd, &mappings, layers, tracks_writes).map_err(|error| chain(&error))?;
    Ok(PagerToVm::Attached)
}

fn track(engine: &Engine, serial: u64) -> Result<PagerToVm, String> {
    let vm = engine.vm(serial).ok_or("it tracks writes before it attaches")?;
    *lock(&vm.tracks_writes) = true;
    Ok(PagerToVm::TrackingWrites)
}
