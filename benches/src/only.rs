//! Which parts of a benchmark somebody wants (`--only`).

/// Those with a row whose name begins with one of these, or all where there are none.
#[derive(Debug)]
pub struct Only(Vec<String>);

/// No row begins so.
#[derive(Debug, thiserror::Error)]
#[error("no row of `{bench}` begins with {prefix:?}; there are: {known}")]
pub struct NoSuchRow {
    bench: &'static str,
    prefix: String,
    known: String,
}

impl Only {
    /// Of prefixes of rows of `bench`, whose parts have these rows.
    pub fn new(bench: &'static str, prefixes: &[String], parts: &[&[&str]]) -> Result<Self, NoSuchRow> {
        let mut rows = parts.iter().copied().flatten().copied();
        match prefixes.iter().find(|prefix| !rows.clone().any(|row| row.starts_with(prefix.as_str()))) {
            Some(prefix) => {
                let known = rows.by_ref().collect::<Vec<_>>().join(" ");
                Err(NoSuchRow { bench, prefix: prefix.clone(), known })
            }
            None => Ok(Self(prefixes.to_vec())),
        }
    }

    /// Whether a part with these rows is wanted.
    pub fn wants(&self, rows: &[&str]) -> bool {
        self.0.is_empty() || rows.iter().any(|row| self.0.iter().any(|prefix| row.starts_with(prefix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_chooses_parts_and_one_that_no_row_has_is_refused() {
        const PARTS: [&[&str]; 2] = [&["pause_us", "pause_ratio"], &["ready_ms"]];
        let only = |prefixes: &[&str]| {
            let prefixes = prefixes.iter().map(|&prefix| prefix.to_owned()).collect::<Vec<_>>();
            Only::new("clone", &prefixes, &PARTS)
        };
        let all = only(&[]).unwrap();
        assert!(PARTS.iter().all(|rows| all.wants(rows)));
        let some = only(&["pause_r"]).unwrap();
        assert!(some.wants(PARTS[0]) && !some.wants(PARTS[1]));
        let error = only(&["ready", "puase"]).unwrap_err().to_string();
        assert!(error.contains("puase") && error.contains("pause_us pause_ratio ready_ms"), "{error}");
    }
}
