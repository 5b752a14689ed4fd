//! A `vmm` process from start to end.

use crate::control::orders::Orders;
use crate::machine::build::{self, BuildError};
use patina_control::best_effort;
use patina_control::config::VmConfig;
use patina_control::end::{End, EndKind};
use patina_daemon::lock;
use patina_jail::sys::inherit::{InheritError, Inherited};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long the end of a VM waits for its devices: one of them may be waiting for memory that never
/// arrives.
const FINISH_PATIENCE: Duration = Duration::from_secs(1);
/// Longest configuration, bytes.
const CONFIG_MAX_BYTES: u64 = 64 * 1024;

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A descriptor is missing.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The configuration cannot be read.
    #[error("read the configuration")]
    Read(#[source] std::io::Error),
    /// The configuration is invalid.
    #[error("read the configuration: it is invalid")]
    Parse(#[source] serde_json::Error),
    /// The VM cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Serving the control socket failed.
    #[error("serve the control socket")]
    Serve(#[source] std::io::Error),
    /// The thread that works on the VM cannot be started.
    #[error("start the VM's thread")]
    Orders(#[source] std::io::Error),
    /// The end could not be recorded.
    #[error("record the end of the VM")]
    Record(#[source] std::io::Error),
}

/// Runs the VM whose configuration is in descriptor `config_fd`, until it has ended.
///
/// # Errors
/// It cannot be started, or its end cannot be recorded. An end by the guest's own doing is no
/// error.
pub fn run(mut inherited: Inherited, config_fd: RawFd) -> Result<(), ProcessError> {
    let started = Instant::now();
    let config = read_config(File::from(inherited.take(config_fd)?))?;
    let record = EndRecord::new(File::from(inherited.take(config.end_fd)?));
    record_panics(record.clone());
    let end = match build::build(&config, &mut inherited, started) {
        Ok(mut running) => {
            let orders = Orders::start(running.machine, running.mailbox).map_err(ProcessError::Orders)?;
            let end = running.server.run(&orders).map_err(ProcessError::Serve)?;
            orders.finish(FINISH_PATIENCE);
            running.console.flush();
            // On a full disk the end cannot be recorded, but vmmd is told and the log has it.
            let recorded = record.write(&end);
            let name = Some(running.server.hostname()).filter(|name| !name.is_empty());
            let name = name.unwrap_or(&config.name).to_owned();
            running.server.farewell(&end);
            patina_daemon::say!("vmm: {name}: ended: {:?}: {}", end.kind, end.reason);
            return recorded;
        }
        Err(error) => error,
    };
    record.write(&End { kind: EndKind::VmmError, reason: patina_daemon::chain(&end) })?;
    Err(end.into())
}

fn read_config(mut file: File) -> Result<VmConfig, ProcessError> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(ProcessError::Read)?;
    file.take(CONFIG_MAX_BYTES).read_to_end(&mut text).map_err(ProcessError::Read)?;
    serde_json::from_slice(&text).map_err(ProcessError::Parse)
}

/// The file that says how the VM ended. The first end that is written is the one that counts.
#[derive(Debug, Clone)]
pub struct EndRecord(Arc<Mutex<Option<File>>>);

impl EndRecord {
    /// `file` is empty and opened for writing.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self(Arc::new(Mutex::new(Some(file))))
    }

    fn write(&self, end: &End) -> Result<(), ProcessError> {
        let file = lock(&self.0).take();
        file.map_or(Ok(()), |file| write_end(file, end))
    }

    /// As [`Self::write`], by a thread that panics: if another holds the file, that one writes.
    fn write_last_words(&self, reason: String) {
        let file = self.0.try_lock().ok().and_then(|mut file| file.take());
        if let Some(file) = file {
            best_effort(
                write_end(file, &End { kind: EndKind::VmmError, reason }),
                "if this fails, standard error still has the message",
            );
        }
    }
}

fn write_end(mut file: File, end: &End) -> Result<(), ProcessError> {
    let mut text = serde_json::to_vec(end).map_err(|error| ProcessError::Record(error.into()))?;
    text.push(b'\n');
    file.write_all(&text).and_then(|()| file.sync_data()).map_err(ProcessError::Record)
}

/// From now on a panic of any thread is written to `record` and to standard error, and ends the
/// process: after a failure in one place, the rest of the vmm cannot be trusted.
pub fn record_panics(record: EndRecord) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let words = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
        record.write_last_words(format!(
            "the vmm failed; please report this: its thread {} panicked{place}: {words}",
            thread.name().unwrap_or("without a name"),
        ));
        print(info);
        std::process::abort();
    }));
}
