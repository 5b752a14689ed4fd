//! Calls of guests that the host answers. The VM is known by its connection; nothing it says names another.

use super::{Host, Vm};
use crate::store::record::Record;
use patina_abi::{
    LINE_MAX_BYTES,
    link::{Answer, CallError, Member},
};
use std::sync::Arc;

/// Room for what surrounds an answer on its line, bytes.
const AROUND_BYTES: usize = 256;
/// How much of an unknown verb is said back, characters.
const ECHO_CHARS: usize = 64;

/// Answers one call of the VM of `record`.
#[must_use]
pub fn answer(host: &Host, record: &Record, verb: &str, _args: &serde_json::Value) -> Answer {
    match verb {
        "list" => list(&host.table.all(), record, &host.settings.hostname),
        other => {
            let verb: String = other.chars().take(ECHO_CHARS).collect();
            refuse(libc::EINVAL, format!("unknown verb {verb:?}"))
        }
    }
}

fn list(vms: &[Arc<Vm>], record: &Record, hostname: &str) -> Answer {
    let mut members: Vec<Member> = vms
        .iter()
        .filter(|vm| vm.record.family == record.family)
        .filter_map(|vm| {
            Some(Member {
                vmid: vm.record.vmid,
                ip: vm.record.net.ip(vm.record.vmid)?,
                state: vm.status().phase.word().to_owned(),
                host: hostname.to_owned(),
            })
        })
        .collect();
    members.sort_by_key(|member| member.vmid);
    match serde_json::to_value(&members) {
        Ok(value) if value.to_string().len() + AROUND_BYTES <= LINE_MAX_BYTES => Answer::Ok(value),
        Ok(_) => {
            refuse(libc::EMSGSIZE, format!("the family's {} VMs do not fit in one answer", members.len()))
        }
        Err(error) => refuse(libc::EIO, format!("write the answer: {error}")),
    }
}

fn refuse(code: i32, message: String) -> Answer {
    Answer::Error(CallError { code, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vms::tests::ended_vm;

    #[test]
    fn a_guest_sees_its_own_family_and_no_other() {
        let vm = ended_vm("a");
        let Answer::Ok(value) = list(&[Arc::clone(&vm)], &vm.record, "h") else { panic!("refused") };
        let members: Vec<Member> = serde_json::from_value(value).unwrap();
        let ip = "100.64.32.1".parse().unwrap();
        assert_eq!(members, [Member { vmid: 0, ip, state: "ended".into(), host: "h".into() }]);
        let stranger = Record { family: uuid::Uuid::from_u128(1), ..vm.record.clone() };
        assert_eq!(list(&[vm], &stranger, "h"), Answer::Ok(serde_json::json!([])));
    }

    #[test]
    fn an_answer_that_fits_no_line_is_refused() {
        let vm = ended_vm("a");
        let many = vec![Arc::clone(&vm); 2000];
        let Answer::Error(error) = list(&many, &vm.record, "h") else { panic!("too long") };
        assert_eq!(error.code, libc::EMSGSIZE);
    }
}
