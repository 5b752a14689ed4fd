//! `vmctl doctor`: checks whether this machine meets Patina's requirements, and says how to meet
//! them.
//!
//! - [`facts`]: examines the machine; judges nothing.
//! - [`checks`]: judges the facts; makes no system calls.

mod checks;
mod facts;

use super::Context;
use crate::{
    error::CtlError,
    output::{self, Format},
};
use checks::{Check, Verdict};

/// Prints every check; an error when one failed.
pub async fn run(context: &Context) -> Result<(), CtlError> {
    let facts = facts::look(context).await;
    let checks = checks::all(&facts);
    match context.format {
        Format::Json => output::json(&checks)?,
        Format::Table => print(&checks)?,
    }
    match checks.iter().filter(|check| check.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        failed => Err(CtlError::Unhealthy(failed)),
    }
}

fn print(checks: &[Check]) -> Result<(), CtlError> {
    for check in checks {
        output::line(&format!("{}  {:<12} {}", check.verdict.word(), check.name, check.found))?;
        if let Some(fix) = &check.fix {
            output::line(&format!("      {:<12} fix: {fix}", ""))?;
        }
    }
    Ok(())
}
