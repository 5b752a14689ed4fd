//! A file system with one file, `layer`, whose reads stall, lie and fail as a test wants: a FUSE
//! server in a thread of the test.

use super::sys;
use patina_control::pager::RUN_BYTES;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

/// What a read of a run gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// The bytes.
    Good,
    /// The bytes, one of them changed.
    Wrong,
    /// EIO.
    Fails,
    /// Half of the bytes, as if the file ended there.
    Short,
    /// No answer until [`Fuse::release`].
    Stalls,
}

#[derive(Debug, Default)]
struct State {
    behaviours: HashMap<u64, Behaviour>,
    others: Option<Behaviour>,
    /// The runs that were read, in order.
    reads: Vec<u64>,
    /// Requests that wait for an answer: their number, and what they want to read.
    stalled: Vec<(u64, u64, u32)>,
}

#[derive(Debug)]
struct Shared {
    device: File,
    content: Vec<u8>,
    state: Mutex<State>,
    changed: Condvar,
}

/// See the module.
#[derive(Debug)]
pub struct Fuse {
    shared: Arc<Shared>,
    at: PathBuf,
}

impl Fuse {
    /// Mounts it at a folder.
    pub fn mount(at: PathBuf, content: Vec<u8>) -> std::io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        sys::mount_fuse(&device, &at)?;
        let shared = Arc::new(Shared { device, content, state: Mutex::default(), changed: Condvar::new() });
        let server = Arc::clone(&shared);
        thread::spawn(move || server.serve());
        Ok(Self { shared, at })
    }

    /// The file, opened.
    pub fn open(&self) -> std::io::Result<File> {
        File::open(self.at.join("layer"))
    }

    /// What the next reads of a run get.
    pub fn set(&self, run: u64, behaviour: Behaviour) {
        self.shared.state().behaviours.insert(run, behaviour);
    }

    /// What the next reads of all other runs get.
    pub fn set_others(&self, behaviour: Behaviour) {
        self.shared.state().others = Some(behaviour);
    }

    /// The runs that were read, in order.
    pub fn reads(&self) -> Vec<u64> {
        self.shared.state().reads.clone()
    }

    /// Waits until so many runs were read.
    pub fn wait_for_reads(&self, count: usize) {
        let state = self.shared.state();
        drop(
            self.shared.changed.wait_while(state, |state| state.reads.len() < count).expect("nobody panics"),
        );
    }

    /// Answers what has stalled; nothing stalls from now on.
    pub fn release(&self) {
        let mut state = self.shared.state();
        state.behaviours.retain(|_, behaviour| *behaviour != Behaviour::Stalls);
        state.others = state.others.filter(|behaviour| *behaviour != Behaviour::Stalls);
        for (unique, offset, size) in std::mem::take(&mut state.stalled) {
            self.shared.answer_read(unique, offset, size, Behaviour::Good);
        }
    }

    /// Ends the connection: every read fails from now on, as on a disk that is gone.
    pub fn die(&self) {
        sys::unmount(&self.at);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.release();
        sys::unmount(&self.at);
    }
}

const ENOSYS: i32 = 38;
const EIO: i32 = 5;
const ENOENT: i32 = 2;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("as long"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("as long"))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics")
    }

    fn serve(&self) {
        let mut request = vec![0; 256 * 1024];
        // Ends with an error when the file system is unmounted.
        while let Ok(length) = (&self.device).read(&mut request) {
            let request = &request[..length];
            let (opcode, unique, node) = (u32_at(request, 4), u64_at(request, 8), u64_at(request, 16));
            let body = &request[40..];
            match opcode {
                // LOOKUP
                1 if body == b"layer\0" => {
                    let mut entry = [2_u64, 0, 60, 60].map(u64::to_le_bytes).concat();
                    entry.extend([0; 8]);
                    entry.extend(self.attributes(2));
                    self.reply(unique, 0, &entry);
                }
                1 => self.reply(unique, -ENOENT, &[]),
                // FORGET, INTERRUPT, BATCH_FORGET
                2 | 36 | 42 => {}
                // GETATTR
                3 => {
                    let mut attributes = [60_u64, 0].map(u64::to_le_bytes).concat();
                    attributes.extend(self.attributes(node));
                    self.reply(unique, 0, &attributes);
                }
                // OPEN: past the page cache, and nobody is told when it is closed: a process that
                // ends in the middle of a test would wait for itself.
                14 => self.reply(unique, 0, &[0_u64, 1 | 1 << 5].map(u64::to_le_bytes).concat()),
                15 => self.read(unique, u64_at(body, 8), u32_at(body, 16)),
                // RELEASE, FLUSH
                18 | 25 => self.reply(unique, 0, &[]),
                // INIT
                26 => {
                    let mut answer = [7_u32, 31, 0, 0, 16 | 12 << 16, 4096, 1].map(u32::to_le_bytes).concat();
                    answer.resize(64, 0);
                    self.reply(unique, 0, &answer);
                }
                _ => self.reply(unique, -ENOSYS, &[]),
            }
        }
    }

    fn attributes(&self, node: u64) -> Vec<u8> {
        let (mode, size) = if node == 2 { (0o100_444_u32, self.content.len() as u64) } else { (0o40_755, 0) };
        let mut attributes = [node, size, size.div_ceil(512), 0, 0, 0].map(u64::to_le_bytes).concat();
        attributes.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat());
        attributes
    }

    fn read(&self, unique: u64, offset: u64, size: u32) {
        let mut state = self.state();
        let run = offset / RUN_BYTES;
        state.reads.push(run);
        self.changed.notify_all();
        let behaviour = state.behaviours.get(&run).copied().or(state.others).unwrap_or(Behaviour::Good);
        if behaviour == Behaviour::Stalls {
            return state.stalled.push((unique, offset, size));
        }
        drop(state);
        self.answer_read(unique, offset, size, behaviour);
    }

    fn answer_read(&self, unique: u64, offset: u64, size: u32, behaviour: Behaviour) {
        let start = (offset as usize).min(self.content.len());
        let end = (start + size as usize).min(self.content.len());
        let mut bytes = self.content[start..end].to_vec();
        match behaviour {
            Behaviour::Fails => return self.reply(unique, -EIO, &[]),
            Behaviour::Short => {
                bytes.truncate(bytes.len() / 2 * usize::from(offset.is_multiple_of(RUN_BYTES)))
            }
            Behaviour::Wrong => bytes[12_345] ^= 1,
            Behaviour::Good | Behaviour::Stalls => {}
        }
        self.reply(unique, 0, &bytes);
    }

    fn reply(&self, unique: u64, error: i32, body: &[u8]) {
        let mut reply = ((16 + body.len()) as u32).to_le_bytes().to_vec();
        reply.extend(error.to_le_bytes());
        reply.extend(unique.to_le_bytes());
        reply.extend(body);
        // Who asked may be gone.
        let _sent = (&self.device).write(&reply);
    }
}
