//! The `vmm` process: runs one VM. `vmmd` starts it. Users do not.

use patina_jail::sys::inherit::Inherited;
use std::{
    io::{self, Write as _},
    process::ExitCode,
};

const USAGE: &str = "usage: vmm --config-fd N   (started by vmmd; see `vmctl run`)";

fn print(line: &str) -> ExitCode {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            patina_daemon::say!("vmm: write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let inherited = claim();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let fd = match &args[..] {
        [option, fd] if option == "--config-fd" => fd.parse().ok(),
        [option] if option == "--version" => {
            return print(concat!("vmm ", env!("CARGO_PKG_VERSION")));
        }
        [option] if option == "--check-host" => {
            return print(&serde_json::to_string(&vmm::host_check::check()).unwrap_or_default());
        }
        _ => None,
    };
    let Some(fd) = fd else {
        patina_daemon::say!("{USAGE}");
        return ExitCode::from(2);
    };
    match vmm::process::run(inherited, fd) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            patina_daemon::say!("vmm: {}", patina_daemon::chain(&error));
            ExitCode::FAILURE
        }
    }
}

#[allow(unsafe_code, reason = "the one place where a process may claim its inherited descriptors")]
fn claim() -> Inherited {
    // SAFETY: the first thing that main does: nothing has opened or owns a descriptor above 2.
    unsafe { Inherited::claim() }
}
