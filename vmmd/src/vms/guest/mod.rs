//! Calls of guests that the host answers. A VM is identified by its connection. It can name nothing
//! that belongs to another family.
//!
//! - `look`: `list`, `lt`, `ticket`.
//! - [`together`]: `sync`, `leave-data`, `leave`, `join`, `join-data`, `kill`.
//! - here: `clone`, `rt`, and the errors as guests see them.
//!
//! [`patina_abi::local`] has a table of all verbs, [`patina_abi::codes`] the error codes of each.

mod look;
pub mod together;

use super::{
    clone::{COUNT, Call, Clones},
    error::{Error, Unprepared},
    host::{Calls, GuestCall, Host},
    tickets::Wanted,
    vm::Vm,
};
use crate::process::control_client::PATIENCE;
use futures::future::BoxFuture;
use patina_abi::{
    LINE_MAX_BYTES,
    args::Args,
    link::{Answer, CallError, CloneArgs, Cloned},
};
use patina_daemon::chain;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

/// Room for what surrounds an answer on its line, bytes.
const AROUND_BYTES: usize = 256;
const _: () = assert!(AROUND_BYTES <= patina_abi::AROUND_MAX_BYTES);
/// How much of an unknown verb the answer repeats, characters.
const ECHO_CHARS: usize = 64;
/// How much of the reason the answer has for a clone that failed, characters.
const REASON_CHARS: usize = 160;
/// How much when that is too much for one line. So much of the widest characters of 256 clones
/// fits.
const REASON_FEW_CHARS: usize = 16;

/// The host's answers to its guests.
#[derive(Debug, Default, Clone, Copy)]
pub struct Answers;

impl Calls for Answers {
    fn answer<'a>(&'a self, host: &'a Arc<Host>, vm: &'a Arc<Vm>, call: GuestCall) -> BoxFuture<'a, Answer> {
        Box::pin(answer(host, vm, call))
    }
}

async fn answer(host: &Arc<Host>, vm: &Arc<Vm>, call: GuestCall) -> Answer {
    let GuestCall { verb, args, arrived_ns, abandoned } = call;
    let args = &args;
    if let Err(error) = host.adopted(PATIENCE).await {
        return Answer::Error(refusal(error));
    }
    let answered = match verb.as_str() {
        "list" => look::list(host, vm, args).await,
        "clone" => match parse(args) {
            Ok(args) => clone(host, vm, args, arrived_ns, abandoned).await,
            Err(error) => Err(error),
        },
        "rt" => match parse(args) {
            Ok(args) => host.request_ticket(vm, args).await.map_err(refusal).and_then(|view| write(&view)),
            Err(error) => Err(error),
        },
        "ticket" => look::one_ticket(host, vm, args).await,
        "lt" => look::tickets(host, vm, args).await,
        "sync" => together::sync(host, vm, args).await,
        "leave-data" => together::leave_data(vm, args),
        "leave" => together::leave(host, vm, args).await,
        "join" => together::join(host, vm, args).await,
        "join-data" => together::join_data(host, vm, args).await,
        "kill" => together::kill(host, vm, args).await,
        other => Err(refuse(libc::EINVAL, format!("unknown verb {:?}", first_chars(other, ECHO_CHARS)))),
    };
    answered.map_or_else(|error| Answer::Error(error.cut()), Answer::Ok)
}

type Answered = Result<serde_json::Value, CallError>;

fn parse<T: DeserializeOwned>(args: &Args) -> Result<T, CallError> {
    args.read().map_err(|error| refuse(libc::EINVAL, format!("read the arguments: {error}")))
}

/// No arguments are all of them left out.
fn optional<T: DeserializeOwned + Default>(args: &Args) -> Result<T, CallError> {
    if args.is_null() { Ok(T::default()) } else { parse(args) }
}

fn ticket(text: &str) -> Result<Uuid, CallError> {
    let shown = first_chars(text, ECHO_CHARS);
    text.parse().map_err(|_| refuse(libc::EINVAL, format!("{shown:?} is no ticket: it is written as a UUID")))
}

fn write(value: &impl Serialize) -> Answered {
    match serde_json::to_value(value) {
        Ok(value) if value.to_string().len() + AROUND_BYTES <= LINE_MAX_BYTES => Ok(value),
        Ok(_) => Err(refuse(libc::EMSGSIZE, "the answer does not fit on one line".into())),
        Err(error) => Err(refuse(libc::EIO, format!("write the answer: {error}"))),
    }
}

fn wanted(args: &CloneArgs) -> Result<Wanted, CallError> {
    match (args.count, &args.ticket) {
        (Some(count), None) if COUNT.contains(&count) => Ok(Wanted::Count(count)),
        (Some(count), None) => {
            let (least, most) = (COUNT.start(), COUNT.end());
            Err(refuse(libc::EINVAL, format!("make {count} clones: not between {least} and {most}")))
        }
        (None, Some(text)) => Ok(Wanted::Ticket { id: ticket(text)?, epoch: 0, count: None }),
        (None, None) | (Some(_), Some(_)) => {
            Err(refuse(libc::EINVAL, "say either how many clones, or a ticket".into()))
        }
    }
}

async fn clone(
    host: &Arc<Host>,
    vm: &Arc<Vm>,
    args: CloneArgs,
    arrived_ns: u64,
    abandoned: CancellationToken,
) -> Answered {
    let wanted = wanted(&args)?;
    let Ok(asked) = Arc::clone(&vm.asked).try_acquire_owned() else {
        return Err(refusal(Error::CloneUnderWay(vm.record.name.clone())));
    };
    // The agent has prepared before it asked.
    let parent = Arc::clone(vm);
    let call =
        Call { parent, wanted, prepare: None, request: None, arrived_ns, asked: Some(asked), abandoned };
    let clones = host.clone_vm(call).await.map_err(refusal)?;
    let mut cloned = cloned(clones)?;
    write(&cloned).or_else(|_| {
        // They were cloned: that some reasons are long must not hide it.
        for (_, reason) in &mut cloned.failed {
            *reason = first_chars(reason, REASON_FEW_CHARS);
        }
        write(&cloned)
    })
}

fn first_chars(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

fn cloned(clones: Clones) -> Result<Cloned, CallError> {
    let mut cloned = Cloned::default();
    let mut first = None;
    for outcome in clones.outcomes {
        match outcome.made {
            Ok(_) => cloned.vmids.push(outcome.vmid),
            Err(error) => {
                cloned.failed.push((outcome.vmid, first_chars(&chain(&error), REASON_CHARS)));
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) if cloned.vmids.is_empty() => Err(refusal(error)),
        _ => Ok(cloned),
    }
}

/// An error as a guest sees it: an errno for programs, the message for people.
fn refusal(error: Error) -> CallError {
    let code = match &error {
        Error::Scheduler(status) => errno(status),
        Error::CloneUnderWay(_) => libc::EBUSY,
        Error::Abandoned(_) => libc::ECANCELED,
        Error::NotPrepared { source, .. } => match Unprepared::of(source) {
            Unprepared::Busy => libc::EBUSY,
            Unprepared::Silent => libc::ENOTCONN,
            Unprepared::Late => libc::ETIMEDOUT,
            Unprepared::Hook => libc::ECANCELED,
            Unprepared::Unable => libc::EIO,
        },
        Error::Adopting(_) | Error::MuteVmm { .. } | Error::Starting => libc::EAGAIN,
        Error::NotReady { .. } | Error::Stopping | Error::NoScheduler { .. } | Error::Registering => {
            libc::EAGAIN
        }
        Error::Remote(_) | Error::Receive(_) => libc::EREMOTEIO,
        Error::TooMany | Error::NoVmid { .. } => libc::ENOSPC,
        _ => libc::EIO,
    };
    refuse(code, chain(&error))
}

/// The scheduler's reasons as errnos. EBUSY and EAGAIN are for what another try may bring, and for
/// nothing else.
fn errno(status: &Status) -> i32 {
    let info = status.get_details_error_info();
    match (info.as_ref().map_or("", |info| info.reason.as_str()), status.code()) {
        ("UNKNOWN_TICKET" | "DATA_DROPPED", _) => libc::ENOENT,
        ("FOREIGN_TICKET" | "FOREIGN_HOST" | "ROLE", _) => libc::EACCES,
        ("UNKNOWN_VM" | "NOT_CLONE", _) => libc::ESRCH,
        ("NOT_USED" | "NOT_PARENT", _) => libc::ECHILD,
        ("USED" | "RELEASED" | "EXPIRED" | "FENCED", _) => libc::ESTALE,
        ("SMALL_TICKET" | "OTHER_HOST" | "OTHER_PARENT", _) => libc::EXDEV,
        ("TOO_MUCH_DATA", _) => libc::EFBIG,
        ("TOO_MANY_TICKETS", _) => libc::EDQUOT,
        ("NO_FREE_VMID", _) => libc::ENOSPC,
        ("NO_CAPACITY" | "HOST_CORDONED", _) => libc::EBUSY,
        ("IMPOSSIBLE" | "HOSTS_DIFFER" | "HOST_UP" | "HOST_ID_IN_USE", _) | (_, Code::InvalidArgument) => {
            libc::EINVAL
        }
        (_, Code::DeadlineExceeded) => libc::ETIME,
        // A host that is not registered, or was fenced, registers again at once, and says then
        // which families it has.
        ("UNKNOWN_HOST" | "FOREIGN_FAMILY", _)
        | (_, Code::ResourceExhausted | Code::Unavailable | Code::Aborted) => libc::EAGAIN,
        _ => libc::EIO,
    }
}

fn refuse(code: i32, message: String) -> CallError {
    CallError { code, message }
}

#[cfg(test)]
#[path = "codes_test.rs"]
mod codes_test;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_asked_for_by_number_or_by_ticket() {
        let wanted = |args: serde_json::Value| wanted(&parse(&args.into())?);
        assert_eq!(wanted(serde_json::json!({"count": 3})), Ok(Wanted::Count(3)));
        let uuid = Uuid::from_u128(9);
        let ticket = Ok(Wanted::Ticket { id: uuid, epoch: 0, count: None });
        assert_eq!(wanted(serde_json::json!({"ticket": uuid.to_string()})), ticket);
        for wrong in [
            serde_json::json!({}),
            serde_json::json!({"count": 0}),
            serde_json::json!({"count": 257}),
            serde_json::json!({"count": -1}),
            serde_json::json!({"count": 1, "ticket": uuid.to_string()}),
            serde_json::json!({"ticket": "x".repeat(5000)}),
        ] {
            let error = wanted(wrong).unwrap_err();
            assert!(error.code == libc::EINVAL && error.message.len() < 300, "{error:?}");
        }
    }

    #[test]
    fn all_256_clones_may_fail_and_the_answer_fits_its_line() {
        let cloned = |reason: &str| {
            let failed = (0..256).map(|vmid| (3000 + vmid, reason.to_owned())).collect();
            write(&Cloned { vmids: vec![1], failed })
        };
        assert!(cloned(&"x".repeat(REASON_CHARS)).is_ok());
        let widest = "\u{1}".repeat(REASON_CHARS);
        assert_eq!(cloned(&widest).unwrap_err().code, libc::EMSGSIZE);
        assert!(cloned(&first_chars(&widest, REASON_FEW_CHARS)).is_ok());
    }
}
