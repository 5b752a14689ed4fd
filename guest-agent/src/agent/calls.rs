//! Calls of programs: what the agent answers itself, and what waits for the host.

use super::link::{self, LinkError};
use super::local::{AGAIN, NOT_CONNECTED, TOO_LONG, refuse};
use patina_abi::CALL_MAX_BYTES;
use patina_abi::args::Args;
use patina_abi::link::{Answer, FromAgent, Identity, REQUESTS_MAX};
use patina_abi::local::Request;
use std::collections::BTreeMap;

/// Who waits for the host's answer to a clone: the agent itself, as no client has this number.
pub const CLONE_CLIENT: u64 = 0;

/// The answer to a verb that needs no host. All other verbs are the host's to know, so that an old
/// image serves a new host.
pub fn answer_here(verb: &str, identity: Option<&Identity>) -> Option<Answer> {
    let value: fn(&Identity) -> serde_json::Value = match verb {
        "vmid" => |identity| identity.vmid.into(),
        "my-ip" => |identity| identity.ip.to_string().into(),
        "ismaster" => |identity| (identity.vmid == 0).into(),
        _ => return None,
    };
    Some(match identity {
        Some(identity) => Answer::Ok(value(identity)),
        None => no_identity(verb),
    })
}

/// The answer to a call that needs an identity.
pub fn no_identity(verb: &str) -> Answer {
    refuse(NOT_CONNECTED, format!("{verb}: the host has not told this VM who it is yet"))
}

/// The answer to a call that cannot be sent.
pub fn link_down(verb: &str) -> Answer {
    refuse(NOT_CONNECTED, format!("{verb}: the link to the host is down; try again"))
}

/// The answer to calls that were with the host when the link broke.
pub fn link_lost() -> Answer {
    refuse(NOT_CONNECTED, "the link to the host broke before it answered; the call may have been done")
}

/// Calls that wait for the host, with the client of each.
#[derive(Debug, Default)]
pub struct Calls {
    waiting: BTreeMap<u64, u64>,
    so_far: u64,
}

impl Calls {
    /// Notes a call and returns its line for the host.
    ///
    /// # Errors
    /// The answer that the program gets instead: too many calls wait, or its own is too long.
    pub fn open(&mut self, client: u64, call: Request) -> Result<Vec<u8>, Answer> {
        let Request { verb, args } = call;
        if self.waiting.len() >= REQUESTS_MAX {
            let text = format!("{REQUESTS_MAX} calls wait for the host already; try again later");
            return Err(refuse(AGAIN, text));
        }
        let args = Args::from(args);
        let verb_bytes = serde_json::to_string(&verb).map_or(usize::MAX, |text| text.len());
        if verb_bytes.saturating_add(args.text().len()) > CALL_MAX_BYTES {
            let text = format!("the verb and its arguments are longer than {CALL_MAX_BYTES} bytes together");
            return Err(refuse(TOO_LONG, text));
        }
        let id = self.so_far + 1;
        let line = link::encode(&FromAgent::Request { id, verb, args })
            .map_err(|e| refuse(TOO_LONG, e.to_string()))?;
        self.so_far = id;
        self.waiting.insert(id, client);
        Ok(line)
    }

    /// Ends the call that the host answered; the client that waits for it.
    pub fn close(&mut self, id: u64) -> Option<u64> {
        self.waiting.remove(&id)
    }

    /// Ends the call of a client that has gone; the line that tells the host, if it has that call.
    ///
    /// # Errors
    /// The line cannot be made.
    pub fn abandon(&mut self, client: u64) -> Result<Option<Vec<u8>>, LinkError> {
        let Some(id) = self.waiting.iter().find(|(_, waits)| **waits == client).map(|(id, _)| *id) else {
            return Ok(None);
        };
        self.waiting.remove(&id);
        link::encode(&FromAgent::Cancel { id }).map(Some)
    }

    /// The line that tells the host that nobody wants the call of this client any more. The host
    /// answers it all the same: only it knows whether it was too late.
    ///
    /// # Errors
    /// The line cannot be made.
    pub fn take_back(&self, client: u64) -> Result<Option<Vec<u8>>, LinkError> {
        let id = self.waiting.iter().find(|(_, waits)| **waits == client).map(|(id, _)| *id);
        id.map(|id| link::encode(&FromAgent::Cancel { id })).transpose()
    }

    /// Ends all calls; their clients.
    pub fn close_all(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(args: serde_json::Value) -> Request {
        Request { verb: "list".into(), args }
    }

    fn code(answer: &Answer) -> i32 {
        match answer {
            Answer::Error(e) => e.code,
            Answer::Ok(value) => panic!("{value}"),
        }
    }

    #[test]
    fn without_an_identity_its_verbs_are_refused() {
        for verb in ["vmid", "my-ip", "ismaster"] {
            assert_eq!(code(&answer_here(verb, None).unwrap()), 107);
        }
        assert_eq!(answer_here("list", None), None);
    }

    #[test]
    fn the_host_never_has_more_calls_than_it_takes() {
        let mut calls = Calls::default();
        for client in 0..REQUESTS_MAX as u64 {
            calls.open(client, call(serde_json::Value::Null)).unwrap();
        }
        assert_eq!(code(&calls.open(99, call(serde_json::Value::Null)).unwrap_err()), 11);
        assert_eq!(calls.close(1), Some(0));
        assert_eq!(calls.close(1), None);
        calls.open(99, call(serde_json::Value::Null)).unwrap();
        assert_eq!(calls.close_all().len(), REQUESTS_MAX);
    }

    #[test]
    fn a_call_of_a_client_that_has_gone_is_taken_back_once() {
        let mut calls = Calls::default();
        for client in [7, 8] {
            calls.open(client, call(serde_json::Value::Null)).unwrap();
        }
        assert_eq!(calls.abandon(8).unwrap().unwrap(), b"{\"t\":\"cancel\",\"id\":2}\n");
        assert_eq!((calls.abandon(8).unwrap(), calls.abandon(9).unwrap()), (None, None));
        assert_eq!((calls.close(2), calls.close(1)), (None, Some(7)));
    }

    #[test]
    fn a_call_that_the_host_would_not_take_is_refused() {
        let mut calls = Calls::default();
        // With the quotes of both.
        let longest = CALL_MAX_BYTES - "list".len() - 4;
        for bytes in [longest + 1, patina_abi::LINE_MAX_BYTES - 11] {
            assert_eq!(code(&calls.open(1, call("x".repeat(bytes).into())).unwrap_err()), 90, "{bytes}");
        }
        assert!(calls.close_all().is_empty());
        // What is longest when it is written anew.
        let grown = call(serde_json::from_str(&format!("[{}1]", "1e15,".repeat(12_000))).unwrap());
        assert_eq!(code(&calls.open(1, grown).unwrap_err()), 90);
        let line = calls.open(1, call("x".repeat(longest).into())).unwrap();
        assert!(line.len() <= patina_abi::LINE_MAX_BYTES);
    }
}
