//! The `pager` process: fills layers and answers page faults. `vmmd` starts it. Users do not.

use patina_jail::sys::inherit::Inherited;
use std::io::{self, Write as _};
use std::process::ExitCode;

const USAGE: &str = "usage: pager --control-fd N   (started by vmmd; see `vmctl run`)";

fn print_version() -> ExitCode {
    match writeln!(io::stdout(), "pager {}", env!("CARGO_PKG_VERSION")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            patina_daemon::say!("pager: write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let inherited = claim();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let fd = match &args[..] {
        [option, fd] if option == "--control-fd" => fd.parse().ok(),
        [option] if option == "--version" => return print_version(),
        _ => None,
    };
    let Some(fd) = fd else {
        patina_daemon::say!("{USAGE}");
        return ExitCode::from(2);
    };
    match patina_pager::process::run(inherited, fd) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            patina_daemon::say!("pager: {}", patina_daemon::chain(&error));
            ExitCode::FAILURE
        }
    }
}

#[allow(unsafe_code, reason = "the one place where a process may claim its inherited descriptors")]
fn claim() -> Inherited {
    // SAFETY: the first thing that main does: nothing has opened or owns a descriptor above 2.
    unsafe { Inherited::claim() }
}
