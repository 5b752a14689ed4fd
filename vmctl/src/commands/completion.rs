//! `vmctl completion`: a script that makes a shell complete vmctl's command line.

use crate::{cli::Arguments, error::CtlError, output};
use clap::CommandFactory as _;
use clap_complete::Shell;

/// Prints the script.
pub fn run(shell: Shell) -> Result<(), CtlError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "vmctl", &mut script);
    output::write(&script)
}
