//! A real pager, and this program as its `vmmd` and as VMs with real userfaultfds.
//!
//! They need /dev/userfaultfd, and those with a source that stalls root and /dev/fuse. They show as
//! ignored, with the reason, where these cannot be had.

mod host;
#[macro_use]
mod named;
mod hostile;
mod peers;
mod present;
mod sources;
mod takeover;

use host::{Layer, Pager, Vm, pattern};
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

type Test = fn();

fn main() -> ExitCode {
    if let Ok(task) = std::env::var(host::CHILD) {
        return host::child(&task);
    }
    let tests: [(&str, Test); 1] = named![every_byte_is_served_as_the_source_has_it];
    let missing = host::missing();
    let fuse = missing.clone().or_else(host::missing_fuse);
    let served = tests.into_iter().chain(present::TESTS).chain(hostile::TESTS).chain(peers::TESTS);
    let served = served.chain(peers::another::TESTS);
    let served = served.map(|(name, test)| trial(name, test, missing.as_ref()));
    let stalled = sources::TESTS.into_iter().chain(takeover::TESTS);
    let trials = served.chain(stalled.map(|(name, test)| trial(name, test, fuse.as_ref()))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, test: Test, missing: Option<&String>) -> Trial {
    let run = move || {
        test();
        Ok(())
    };
    match missing {
        None => Trial::test(name, run),
        Some(reason) => Trial::test(format!("{name} [{reason}]"), run).with_ignored_flag(true),
    }
}

fn every_byte_is_served_as_the_source_has_it() {
    let layer = Layer::new("a", pattern(64, |run| run % 5 == 0));
    let mut pager = Pager::start();
    let status = pager.add(&layer).expect("a layer");
    assert_eq!((status.runs, status.present), (64, 13));
    let vms = ["one", "two"].map(|name| Vm::attach(&mut pager, name, &layer));
    vms.iter().for_each(|vm| vm.check(&layer.content));
    let status = pager.status(&layer);
    assert_eq!((status.present, status.fetched, status.failed, status.vms), (64, 51, 0, 2));
}
