//! A disk on which files can be made, and whose writes, syncs and renames stall as a test wants: a
//! FUSE file system in memory, which a thread of the test serves.

use crate::restores::sys;
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

/// What stalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// Writes to files.
    Write,
    /// Syncs of files.
    Sync,
    /// Syncs of directories in the one that is mounted.
    SyncFolder,
    /// Renames into the directory that is mounted.
    Rename,
    /// Looks for a name.
    Look,
}

#[derive(Debug)]
enum Node {
    Folder(BTreeMap<Vec<u8>, u64>),
    /// In memory, without its zeros.
    File(File),
}

#[derive(Debug, Default)]
struct State {
    nodes: HashMap<u64, Node>,
    stalls: Option<Stall>,
    /// Requests that wait for an answer.
    stalled: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Server {
    device: File,
    state: Mutex<State>,
}

/// See the module.
#[derive(Debug)]
pub struct Disk {
    server: Arc<Server>,
    pub at: PathBuf,
}

const ROOT: u64 = 1;
const NOREPLACE: u32 = 1;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOSYS: i32 = 38;
const ENOTEMPTY: i32 = 39;
/// How long the kernel may remember names and attributes, seconds. Not at all: files change here
/// without it.
const VALID: u64 = 0;

impl Disk {
    /// Mounts an empty one at a folder, which it makes.
    pub fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        sys::mount_fuse(&device, &at).unwrap();
        let nodes = HashMap::from([(ROOT, Node::Folder(BTreeMap::new()))]);
        let server = Arc::new(Server { device, state: Mutex::new(State { nodes, ..State::default() }) });
        let serving = Arc::clone(&server);
        thread::spawn(move || serving.serve());
        Self { server, at }
    }

    /// From now on these operations are not answered.
    pub fn stall(&self, what: Stall) {
        self.server.state().stalls = Some(what);
    }

    /// How many operations wait.
    pub fn stalled(&self) -> usize {
        self.server.state().stalled.len()
    }

    /// Carries out what has stalled; nothing stalls from now on.
    pub fn release(&self) {
        let stalled = {
            let mut state = self.server.state();
            state.stalls = None;
            std::mem::take(&mut state.stalled)
        };
        stalled.iter().for_each(|request| self.server.answer(request));
    }

    /// The names in the directory that is mounted. The file system itself is not asked.
    pub fn names(&self) -> Vec<String> {
        let state = self.server.state();
        let Some(Node::Folder(names)) = state.nodes.get(&ROOT) else { panic!("the root is a folder") };
        names.keys().map(|name| String::from_utf8(name.clone()).unwrap()).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.release();
        sys::unmount(&self.at);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The names that end with a zero each.
fn strings(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec)
}

type Answered = Result<Vec<u8>, i32>;

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn serve(&self) {
        let mut buffer = vec![0; 256 * 1024];
        // Ends with an error when the file system is unmounted.
        while let Ok(length) = (&self.device).read(&mut buffer) {
            let request = &buffer[..length];
            let mut state = self.state();
            if state.stalls.is_some_and(|stalls| is_of(stalls, request)) {
                state.stalled.push(request.to_vec());
                continue;
            }
            drop(state);
            self.answer(request);
        }
    }

    fn answer(&self, request: &[u8]) {
        let opcode = u32_at(request, 4);
        // FORGET, INTERRUPT and BATCH_FORGET have no answer. What is interrupted waits on, as it
        // does on a disk of the host's own.
        if [2, 36, 42].contains(&opcode) {
            return;
        }
        let answered = self.state().carry_out(opcode, u64_at(request, 16), &request[40..]);
        let (error, body) = answered.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let mut reply = ((16 + body.len()) as u32).to_le_bytes().to_vec();
        reply.extend(error.to_le_bytes());
        reply.extend(&request[8..16]);
        reply.extend(body);
        // Who asked may be gone.
        let _sent = (&self.device).write(&reply);
    }
}

/// Whether a request is one of these. Within a snapshot's own directory layers get their names:
/// that is not the rename that is meant.
fn is_of(stalls: Stall, request: &[u8]) -> bool {
    match (stalls, u32_at(request, 4)) {
        (Stall::Write, 16) | (Stall::Sync, 20) | (Stall::Look, 1) => true,
        (Stall::SyncFolder, 30) => u64_at(request, 16) != ROOT,
        (Stall::Rename, 45) => u64_at(request, 40) == ROOT,
        _ => false,
    }
}

impl State {
    fn carry_out(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answered {
        match opcode {
            // LOOKUP
            1 => {
                let found = *self.names(node)?.get(without_end(body)).ok_or(ENOENT)?;
                self.entry(found)
            }
            // GETATTR
            3 => self.attributes(node),
            // MKDIR
            9 => {
                let made = self.make(node, without_end(&body[8..]), Node::Folder(BTreeMap::new()))?;
                self.entry(made)
            }
            // UNLINK, RMDIR
            10 | 11 => {
                let name = without_end(body);
                let gone = *self.names(node)?.get(name).ok_or(ENOENT)?;
                if matches!(&self.nodes[&gone], Node::Folder(names) if !names.is_empty()) {
                    return Err(ENOTEMPTY);
                }
                self.names(node)?.remove(name);
                Ok(Vec::new())
            }
            // OPEN, OPENDIR: past the page cache, and nobody is told when it is closed
            14 | 27 => Ok([0_u64, 1 | 1 << 5].map(u64::to_le_bytes).concat()),
            // SETATTR, READ, WRITE
            4 | 15 | 16 => self.change_file(opcode, node, body),
            // STATFS
            17 => {
                let mut space =
                    [1_u64 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20].map(u64::to_le_bytes).concat();
                space.extend([4096_u32, 255, 4096, 0, 0, 0, 0, 0, 0, 0].map(u32::to_le_bytes).concat());
                Ok(space)
            }
            // RELEASE, FSYNC, FLUSH, RELEASEDIR, FSYNCDIR
            18 | 20 | 25 | 29 | 30 => Ok(Vec::new()),
            // INIT: with large writes
            26 => {
                let mut answer =
                    [7_u32, 31, 0, 1 << 5, 16 | 12 << 16, 65_536, 1].map(u32::to_le_bytes).concat();
                answer.resize(64, 0);
                Ok(answer)
            }
            // READDIR
            28 => self.list(node, u64_at(body, 8), u32_at(body, 16) as usize),
            // CREATE
            35 => {
                let made = self.make(node, without_end(&body[16..]), Node::File(empty_file()))?;
                let mut answer = self.entry(made)?;
                answer.extend([0_u64, 1 | 1 << 5].map(u64::to_le_bytes).concat());
                Ok(answer)
            }
            // RENAME2
            45 => self.rename(node, u64_at(body, 0), u32_at(body, 8), &body[16..]),
            _ => Err(ENOSYS),
        }
    }

    fn names(&mut self, node: u64) -> Result<&mut BTreeMap<Vec<u8>, u64>, i32> {
        match self.nodes.get_mut(&node) {
            Some(Node::Folder(names)) => Ok(names),
            _ => Err(ENOENT),
        }
    }

    fn change_file(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answered {
        let Some(Node::File(file)) = self.nodes.get(&node) else { return Err(ENOENT) };
        match opcode {
            // SETATTR, of which only the length counts
            4 => {
                if u32_at(body, 0) & (1 << 3) != 0 {
                    file.set_len(u64_at(body, 16)).unwrap();
                }
                self.attributes(node)
            }
            // READ
            15 => {
                let mut bytes = vec![0; u32_at(body, 16) as usize];
                let length = file.read_at(&mut bytes, u64_at(body, 8)).unwrap();
                bytes.truncate(length);
                Ok(bytes)
            }
            // WRITE
            _ => {
                let size = u32_at(body, 16);
                file.write_all_at(&body[40..40 + size as usize], u64_at(body, 8)).unwrap();
                Ok([size, 0].map(u32::to_le_bytes).concat())
            }
        }
    }

    fn make(&mut self, parent: u64, name: &[u8], node: Node) -> Result<u64, i32> {
        let number = ROOT + self.nodes.len() as u64;
        let names = self.names(parent)?;
        if names.contains_key(name) {
            return Err(EEXIST);
        }
        names.insert(name.to_vec(), number);
        // Nothing is ever forgotten: files that were removed may be open.
        self.nodes.insert(number, node);
        Ok(number)
    }

    fn rename(&mut self, from: u64, to: u64, flags: u32, names: &[u8]) -> Answered {
        let mut names = strings(names);
        let (Some(old), Some(new)) = (names.next(), names.next()) else { return Err(ENOENT) };
        if flags & NOREPLACE != 0 && self.names(to)?.contains_key(&new) {
            return Err(EEXIST);
        }
        let node = self.names(from)?.remove(&old).ok_or(ENOENT)?;
        self.names(to)?.insert(new, node);
        Ok(Vec::new())
    }

    fn list(&mut self, node: u64, offset: u64, most: usize) -> Answered {
        let mut answer = Vec::new();
        let names = self.names(node)?.clone();
        for (next, (name, number)) in (1_u64..).zip(names).skip(offset as usize) {
            // The kind is not known here.
            let mut entry = [number, next].map(u64::to_le_bytes).concat();
            entry.extend([name.len() as u32, 0].map(u32::to_le_bytes).concat());
            entry.extend(name);
            entry.resize(entry.len().next_multiple_of(8), 0);
            if answer.len() + entry.len() > most {
                break;
            }
            answer.extend(entry);
        }
        Ok(answer)
    }

    fn entry(&self, node: u64) -> Answered {
        let mut entry = [node, 0, VALID, VALID, 0].map(u64::to_le_bytes).concat();
        entry.extend(self.attributes_of(node)?);
        Ok(entry)
    }

    fn attributes(&self, node: u64) -> Answered {
        let mut attributes = [VALID, 0].map(u64::to_le_bytes).concat();
        attributes.extend(self.attributes_of(node)?);
        Ok(attributes)
    }

    fn attributes_of(&self, node: u64) -> Answered {
        let (mode, size) = match self.nodes.get(&node).ok_or(ENOENT)? {
            Node::Folder(_) => (0o40_700_u32, 0),
            Node::File(file) => (0o100_600, file.metadata().unwrap().len()),
        };
        let mut attributes = [node, size, size.div_ceil(512), 0, 0, 0].map(u64::to_le_bytes).concat();
        attributes.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat());
        Ok(attributes)
    }
}

fn empty_file() -> File {
    rustix::fs::memfd_create("on-disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
}

fn without_end(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}
