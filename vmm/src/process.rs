//! A `vmm` process from start to end.

use crate::api::config::VmConfig;
use crate::api::end::{End, EndKind};
use crate::machine::build::{self, BuildError};
use crate::sys::inherit::{InheritError, Inherited};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::RawFd;
use std::time::Instant;

/// Longest configuration, bytes.
const CONFIG_MAX_BYTES: u64 = 64 * 1024;

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A descriptor is not there.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The configuration cannot be read.
    #[error("read the configuration")]
    Read(#[source] std::io::Error),
    /// The configuration is not understood.
    #[error("read the configuration: it is not understood")]
    Parse(#[source] serde_json::Error),
    /// The VM cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Serving the control socket failed.
    #[error("serve the control socket")]
    Serve(#[source] std::io::Error),
    /// The end could not be recorded.
    #[error("record the end of the VM")]
    Record(#[source] std::io::Error),
}

/// Runs the VM whose configuration is in descriptor `config_fd`, until it has ended.
///
/// # Errors
/// It cannot be started, or its end cannot be recorded. An end by the guest's own doing is no error.
pub fn run(mut inherited: Inherited, config_fd: RawFd) -> Result<(), ProcessError> {
    let started = Instant::now();
    let config = read_config(File::from(inherited.take(config_fd)?))?;
    let mut record = File::from(inherited.take(config.end_fd)?);
    let end = match build::build(&config, &mut inherited, started) {
        Ok(mut running) => {
            let end = running.server.run(&mut running.machine).map_err(ProcessError::Serve)?;
            running.machine.finish();
            write_end(&mut record, &end)?;
            running.server.farewell(&end);
            eprintln!("vmm: {}: ended: {:?}: {}", config.name, end.kind, end.reason);
            return Ok(());
        }
        Err(error) => error,
    };
    write_end(&mut record, &End { kind: EndKind::VmmError, reason: crate::chain(&end) })?;
    Err(end.into())
}

fn read_config(mut file: File) -> Result<VmConfig, ProcessError> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(ProcessError::Read)?;
    file.take(CONFIG_MAX_BYTES).read_to_end(&mut text).map_err(ProcessError::Read)?;
    serde_json::from_slice(&text).map_err(ProcessError::Parse)
}

fn write_end(record: &mut File, end: &End) -> Result<(), ProcessError> {
    let mut text = serde_json::to_vec(end).map_err(|error| ProcessError::Record(error.into()))?;
    text.push(b'\n');
    record.write_all(&text).and_then(|()| record.sync_data()).map_err(ProcessError::Record)
}
