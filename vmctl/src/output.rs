//! Output of results: tables for people, JSON for programs.

use crate::error::CtlError;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write as _};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// JSON; field names stay.
    Json,
}

/// Writes bytes to standard output, at once.
pub fn write(bytes: &[u8]) -> Result<(), CtlError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(CtlError::stdout)
}

/// Prints a line on standard output.
pub fn line(text: &str) -> Result<(), CtlError> {
    write(format!("{text}\n").as_bytes())
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), CtlError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CtlError::stdout(error.into()))?;
    line(&text)
}

/// Prints a value as JSON on one line: one of many.
pub fn json_line(value: &impl Serialize) -> Result<(), CtlError> {
    line(&serde_json::to_string(value).map_err(|error| CtlError::stdout(error.into()))?)
}

/// Prints columns without lines or colours: it reads well and `awk` takes it.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), CtlError> {
    line(&format_table(header, rows))
}

/// Columns as text.
pub fn format_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header);
    }
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_nothing_trails() {
        let rows = [vec!["a".to_owned(), "ready".to_owned()], vec!["long-name".to_owned(), String::new()]];
        assert_eq!(format_table(&["NAME", "STATE"], rows), "NAME       STATE\na          ready\nlong-name");
        let tree = ["a", "  a.1"].map(|name| vec![name.to_owned(), "ready".to_owned()]);
        assert_eq!(format_table(&["NAME", "STATE"], tree), "NAME   STATE\na      ready\n  a.1  ready");
    }
}
