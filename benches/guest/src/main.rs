//! `guest-bench`: measures a guest's kernel from inside. Prints one line of JSON with the medians
//! in microseconds. `guest-bench --all` prints the 50th and 99th percentile and the maximum of all
//! samples. `guest-bench touch MIB` holds memory and writes to it on request: see [`touch`].
//!
//! It is static, and so small that starting it (with `--exit`) costs little beyond the kernel's
//! work. [`sys`] has the system calls, [`measure`] the measurements, and this file the report.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for benchmarks: without its output there is nothing to measure"
)]

mod measure;
mod stats;
mod sys;
mod touch;

use std::process::ExitCode;

use measure::Measured;
use sys::PageSize;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => measure::everything().map(|measured| println!("{}", report(&measured, false))),
        ["--all"] => measure::everything().map(|measured| println!("{}", report(&measured, true))),
        // What the measurements of fork and exec start.
        ["--exit"] => Ok(()),
        ["touch", mib] => touch::serve(mib, PageSize::Small),
        ["touch", "--huge", mib] => touch::serve(mib, PageSize::Huge),
        _ => {
            eprintln!("usage: guest-bench [--all]\n       guest-bench touch [--huge] MIB");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report(measured: &[Measured], all: bool) -> String {
    let fields: Vec<String> = measured
        .iter()
        .map(|Measured { name, samples }| {
            let [p50, p99, max] = [50, 99, 100].map(|percent| samples.percentile_us(percent));
            let n = samples.len();
            if all {
                format!(
                    "\"{name}\":{{\"unit\":\"us\",\"n\":{n},\"p50\":{p50:.2},\"p99\":{p99:.2},\"max\":{max:.2}}}"
                )
            } else {
                format!("\"{name}\":{p50:.2}")
            }
        })
        .collect();
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Samples;

    #[test]
    fn the_report_is_one_line_of_json() {
        let measured = [
            Measured { name: "guest_a_us", samples: Samples::from_ns(vec![1500]) },
            Measured { name: "guest_b_us", samples: Samples::from_ns(vec![2000, 1000, 3000]) },
        ];
        assert_eq!(report(&measured, false), r#"{"guest_a_us":1.50,"guest_b_us":2.00}"#);
        assert_eq!(
            report(&measured[1..], true),
            r#"{"guest_b_us":{"unit":"us","n":3,"p50":2.00,"p99":3.00,"max":3.00}}"#
        );
    }
}
