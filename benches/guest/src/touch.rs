//! Holds memory and writes to it on request.
//!
//! Each line on standard input is a number of MiB. One byte is written to each page of that much
//! memory, and a line on standard output says how long that took, in nanoseconds per page. The
//! pages stay mapped until the input ends. So the first line includes page faults, and a later line
//! shows what has happened to the pages since.

use std::io::{self, BufRead, Write};
use std::time::Instant;

use crate::sys::{PageSize, Pages};

const PAGES_A_MIB: usize = 256;
/// Most memory that is held.
const MIB_MAX: usize = 16 * 1024;

/// Holds `mib` MiB and does what standard input says.
pub fn serve(mib: &str, size: PageSize) -> io::Result<()> {
    answer(mib, size, io::stdin().lock(), io::stdout().lock())
}

fn answer(mib: &str, size: PageSize, input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let held_mib = number(mib, MIB_MAX)?;
    let mut pages = Pages::map(held_mib * PAGES_A_MIB, size)?;
    for line in input.lines() {
        let count = number(line?.trim(), held_mib)? * PAGES_A_MIB;
        let started = Instant::now();
        for page in 0..count {
            pages.touch(page);
        }
        writeln!(output, "{}", started.elapsed().as_nanos() / count as u128)?;
        output.flush()?;
    }
    Ok(())
}

fn number(text: &str, max: usize) -> io::Result<usize> {
    let number = text.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| io::Error::other(format!("{text:?} is not a number of MiB between 1 and {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(mib: &str, lines: &str) -> io::Result<Vec<u64>> {
        let mut output = Vec::new();
        answer(mib, PageSize::Small, lines.as_bytes(), &mut output)?;
        let text = String::from_utf8(output).unwrap();
        Ok(text.lines().map(|line| line.parse().unwrap()).collect())
    }

    #[test]
    fn each_line_is_answered_and_pages_stay_mapped() {
        let times_ns = answers("4", "4\n4\n2\n").unwrap();
        assert_eq!(times_ns.len(), 3);
        assert!(times_ns[0] > 2 * times_ns[1], "the second time faults too: {times_ns:?}");
    }

    #[test]
    fn what_is_not_held_is_not_touched() {
        for (held, line) in [("4", "5\n"), ("4", "0\n"), ("4", "x\n"), ("0", ""), ("99999999", "")] {
            assert!(answers(held, line).is_err(), "{held} {line}");
        }
    }
}
