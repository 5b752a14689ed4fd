//! The kernel's cost of the smallest part of a clone. No clone can cost less. So each figure of a
//! clone is shown beside one of these floors, measured in the same run.
//!
//! - [`sys`]: mappings, and a guest of two instructions.

mod sys;

use crate::report::{Figures, Metric};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Instant,
};

const PAGE_BYTES: usize = 4096;
/// RAM of a guest.
const VIEW_BYTES: usize = 256 << 20;
/// As much of it as pages are copied of, one by one and in bulk.
const COPIED_BYTES: usize = 32 << 20;

/// Why there are no floors.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// KVM refused.
    #[error("{what}: {source}")]
    Kvm {
        /// The operation.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The kernel refused.
    #[error("{what}: {source}")]
    Memory {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        source: rustix::io::Errno,
    },
    /// A file of a snapshot cannot be opened.
    #[error("open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The guest did something else than its one write to a port.
    #[error("run a guest of two instructions: it ended with {0}")]
    Exit(String),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> FloorError {
    move |source| FloorError::Kvm { what, source }
}

fn memory(what: &'static str) -> impl Fn(rustix::io::Errno) -> FloorError {
    move |source| FloorError::Memory { what, source }
}

/// The floors, medians.
#[derive(Debug)]
pub struct Floors {
    /// KVM_CREATE_VM, KVM_CREATE_IRQCHIP and KVM_CREATE_VCPU.
    pub create_us: Figures,
    /// The first KVM_RUN of a vCPU to its first exit, a write to a port.
    pub first_run_us: Figures,
    /// A private view of 256 MiB of a memfd.
    pub map_us: Figures,
    /// A write to a page of such a view that nobody has written to: a fault and a copy.
    pub copy_us: Figures,
    /// The same for a whole range in one call (MADV_POPULATE_WRITE), a page.
    pub populate_us: Figures,
}

impl Floors {
    /// Measures all, `rounds` times each; a single page's fault is measured more often.
    pub fn measure(rounds: usize) -> Result<Self, FloorError> {
        let (mut create_us, mut first_run_us) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (created, ran) = guest()?;
            create_us.push(created);
            first_run_us.push(ran);
        }
        let file = ram()?;
        let mut map_us = Vec::new();
        for _ in 0..rounds {
            let started = Instant::now();
            let view = sys::View::private(&file, VIEW_BYTES).map_err(memory("map a private view"))?;
            map_us.push(us(started));
            drop(view);
        }
        let mut populate_us = Vec::new();
        for _ in 0..rounds.min(5) {
            let view = sys::View::private(&file, COPIED_BYTES).map_err(memory("map a private view"))?;
            let started = Instant::now();
            view.populate().map_err(memory("populate a private view"))?;
            populate_us.push(us(started) / (COPIED_BYTES / PAGE_BYTES) as f64);
        }
        let figures = |samples| Figures::of("us", samples).ok_or(FloorError::Exit("no rounds".to_owned()));
        Ok(Self {
            create_us: figures(create_us)?,
            first_run_us: figures(first_run_us)?,
            map_us: figures(map_us)?,
            copy_us: figures(copies(&file)?)?,
            populate_us: figures(populate_us)?,
        })
    }

    /// As rows of the report.
    pub fn metrics(&self) -> Vec<Metric> {
        [
            ("floor_kvm_create_us", &self.create_us),
            ("floor_kvm_first_run_us", &self.first_run_us),
            ("floor_mmap_us", &self.map_us),
            ("floor_copy_on_write_us", &self.copy_us),
            ("floor_populate_us", &self.populate_us),
        ]
        .map(|(name, figures)| Metric::new(name, figures.clone()))
        .into()
    }
}

fn us(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// Makes a VM and runs it to its first exit: how long both took.
fn guest() -> Result<(f64, f64), FloorError> {
    let host = kvm_ioctls::Kvm::new().map_err(kvm("open /dev/kvm"))?;
    let started = Instant::now();
    let vm = host.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
    vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
    let vcpu = vm.create_vcpu(0).map_err(kvm("KVM_CREATE_VCPU"))?;
    let created_us = us(started);
    let mut guest = sys::TinyGuest::new(vm, vcpu)?;
    let started = Instant::now();
    guest.run_to_exit()?;
    Ok((created_us, us(started)))
}

/// A VM whose RAM is a private mapping of a file, from the opening of the file to the first exit of
/// its guest, which is what a restore costs that maps a snapshot and has no device, no
/// process and no network to make. The guest has two instructions. Microseconds.
pub fn start_on(path: &Path) -> Result<f64, FloorError> {
    let open = |source| FloorError::Open { path: path.to_owned(), source };
    let host = kvm_ioctls::Kvm::new().map_err(kvm("open /dev/kvm"))?;
    let started = Instant::now();
    let file = OwnedFd::from(File::open(path).map_err(open)?);
    let bytes = rustix::fs::fstat(&file).map_err(|errno| open(errno.into()))?.st_size;
    let bytes = usize::try_from(bytes).unwrap_or_default();
    let ram = sys::View::private(&file, bytes).map_err(memory("map a private view"))?;
    let vm = host.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
    vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
    let vcpu = vm.create_vcpu(0).map_err(kvm("KVM_CREATE_VCPU"))?;
    sys::TinyGuest::on(vm, vcpu, ram)?.run_to_exit()?;
    Ok(us(started))
}

/// A memfd with pages where they are copied from.
fn ram() -> Result<OwnedFd, FloorError> {
    let file = memfd_create("patina-floor", MemfdFlags::CLOEXEC).map_err(memory("make a memfd"))?;
    ftruncate(&file, VIEW_BYTES as u64).map_err(memory("size a memfd"))?;
    let page = [1; PAGE_BYTES];
    for offset in (0..COPIED_BYTES).step_by(PAGE_BYTES) {
        let written = rustix::io::pwrite(&file, &page, offset as u64).map_err(memory("fill a memfd"))?;
        if written != PAGE_BYTES {
            return Err(FloorError::Memory { what: "fill a memfd", source: rustix::io::Errno::IO });
        }
    }
    Ok(file)
}

/// One sample a page.
fn copies(file: &OwnedFd) -> Result<Vec<f64>, FloorError> {
    let mut view = sys::View::private(file, COPIED_BYTES).map_err(memory("map a private view"))?;
    let pages = COPIED_BYTES / PAGE_BYTES;
    Ok((0..pages)
        .map(|page| {
            let started = Instant::now();
            view.touch(page);
            us(started)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_private_and_costs_once() {
        let file = ram().unwrap();
        let mut view = sys::View::private(&file, COPIED_BYTES).unwrap();
        view.populate().unwrap();
        view.touch(3);
        let mut byte = [0];
        rustix::io::pread(&file, &mut byte, 3 * PAGE_BYTES as u64).unwrap();
        assert_eq!(byte, [1], "the file has been written to");
        let median = |samples| Figures::of("us", samples).unwrap().p50;
        let first = median(copies(&file).unwrap());
        let again = (0..1000).map(|page| {
            let started = Instant::now();
            view.touch(page);
            us(started)
        });
        assert!(
            first > 2.0 * median(again.collect()),
            "a page that is there costs as much as one that is copied"
        );
    }
}
