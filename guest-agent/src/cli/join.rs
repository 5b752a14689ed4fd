//! `gc join`: a clone leaves its result and ends; the VM that cloned waits for the results.

use super::call::Connection;
use super::verbs::{is_master, print, print_json, read, request};
use super::words::{Words, number, ticket, timeout_ms};
use super::{Output, misuse};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use patina_abi::link::{
    CallError, JoinArgs, JoinData, JoinDataArgs, JoinedClone, LEAVE_MAX_BYTES, LeaveArgs, LeaveData,
    PIECE_MAX_BYTES,
};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// What a clone says instead of leaving a result.
const NO_REPORT: &str = "noreport";

pub(super) fn join(arguments: &[String]) -> Result<Output, CallError> {
    let words = Words::parse(arguments, &["--json"], &["--status", "--data", "--data-dir"])?;
    match words.at_most(2)? {
        [] => leave(&words, false),
        [word] if *word == NO_REPORT => leave(&words, true),
        [name] => wait(&words, JoinArgs { ticket: ticket(name)?, timeout_ms: None }),
        [name, time, ..] => {
            wait(&words, JoinArgs { ticket: ticket(name)?, timeout_ms: Some(timeout_ms(time)?) })
        }
    }
}

fn io_error(what: &str, path: &Path, e: &io::Error) -> CallError {
    let code = e.raw_os_error().unwrap_or(libc::EIO);
    CallError { code, message: format!("{what} {}: {e}", path.display()) }
}

/// In a clone. Comes back only when the VM goes on.
fn leave(words: &Words<'_>, noreport: bool) -> Result<Output, CallError> {
    for option in ["--json", "--data-dir"] {
        if words.has(option) {
            return Err(misuse(format!("{option} is for who waits: `gc join TICKET {option} ...`")));
        }
    }
    if noreport && (words.has("--data") || words.has("--status")) {
        return Err(misuse("noreport leaves nothing; do without it, or without --status and --data"));
    }
    let status = words.value("--status").map(|word| number("--status", word, i32::MIN, i32::MAX));
    let args = LeaveArgs { status: status.transpose()?.unwrap_or(0), noreport };
    if is_master()? {
        return Err(misuse(
            "the master has nobody to leave a result to: it waits for its clones with `gc join TICKET`, and ends with `poweroff`",
        ));
    }
    let data = words.value("--data").map(|name| read_data(Path::new(name))).transpose()?.unwrap_or_default();
    let mut agent = Connection::open()?;
    if !noreport {
        send_data(&mut agent, &data)?;
    }
    agent.call(&request("leave", args)?)?;
    Err(agent.wait_for_end())
}

fn read_data(path: &Path) -> Result<Vec<u8>, CallError> {
    let failed = |e: io::Error| io_error("read", path, &e);
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(failed)?)
    };
    let mut data = Vec::new();
    input.take(LEAVE_MAX_BYTES + 1).read_to_end(&mut data).map_err(failed)?;
    if data.len() as u64 > LEAVE_MAX_BYTES {
        let message = format!(
            "{} has more than {LEAVE_MAX_BYTES} bytes, the most that a clone leaves; send the rest over the family's network",
            path.display()
        );
        return Err(CallError { code: libc::EFBIG, message });
    }
    Ok(data)
}

/// The first piece begins anew at the host, even where it is empty: what a join before has left
/// there does not count.
fn send_data(agent: &mut Connection, data: &[u8]) -> Result<(), CallError> {
    let mut offset = 0;
    loop {
        let piece = data.get(offset..data.len().min(offset + PIECE_MAX_BYTES)).unwrap_or_default();
        agent
            .call(&request("leave-data", LeaveData { offset: offset as u64, data: BASE64.encode(piece) })?)?;
        offset += piece.len();
        if offset >= data.len() {
            return Ok(());
        }
    }
}

/// In the VM that cloned.
fn wait(words: &Words<'_>, args: JoinArgs) -> Result<Output, CallError> {
    for option in ["--status", "--data"] {
        if words.has(option) {
            return Err(misuse(format!("{option} is for a clone that ends: `gc join {option} ...`")));
        }
    }
    let mut agent = Connection::open()?;
    let ticket = args.ticket.clone();
    let ended = agent.call(&request("join", args)?)?;
    let clones: Vec<JoinedClone> = read("list of clones", ended.clone())?;
    if let Some(directory) = words.value("--data-dir").map(Path::new) {
        std::fs::create_dir_all(directory).map_err(|e| io_error("make", directory, &e))?;
        for clone in clones.iter().filter(|clone| clone.data_bytes > 0) {
            fetch(&mut agent, &ticket, clone.vmid, &directory.join(clone.vmid.to_string()))?;
        }
    }
    Ok(if words.has("--json") { print_json(&ended) } else { print(table(&clones)) })
}

/// Writes what a clone has left into a file, piece by piece.
fn fetch(agent: &mut Connection, ticket: &str, vmid: u32, path: &Path) -> Result<(), CallError> {
    let nonsense =
        |what: String| CallError { code: libc::EPROTO, message: format!("data of clone {vmid}: {what}") };
    let mut file = File::create(path).map_err(|e| io_error("make", path, &e))?;
    let mut offset = 0;
    loop {
        let call = JoinDataArgs { ticket: ticket.to_owned(), vmid, offset };
        let JoinData { data, bytes } = read("piece of data", agent.call(&request("join-data", call)?)?)?;
        let piece = BASE64.decode(&data).map_err(|e| nonsense(format!("a piece is no base64: {e}")))?;
        offset += piece.len() as u64;
        if offset > bytes || bytes > LEAVE_MAX_BYTES || (piece.is_empty() && offset < bytes) {
            return Err(nonsense(format!(
                "the host's pieces do not add up to the {bytes} bytes that it names"
            )));
        }
        file.write_all(&piece).map_err(|e| io_error("write", path, &e))?;
        if offset == bytes {
            return Ok(());
        }
    }
}

pub(super) fn table(clones: &[JoinedClone]) -> String {
    let mut text = String::new();
    for JoinedClone { vmid, end, status, reported, .. } in clones {
        let unreported = end == "joined" && !reported;
        let written = if unreported {
            writeln!(text, "{vmid} {end} -")
        } else {
            writeln!(text, "{vmid} {end} {status}")
        };
        // Writing to a String does not fail.
        if written.is_err() {
            break;
        }
    }
    text
}
