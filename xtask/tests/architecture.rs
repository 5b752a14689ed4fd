//! What ARCHITECTURE.md names is there: each path, and each function in the file that is named
//! before it.

mod tree;

use std::{fs, path::Path};

/// A word in backquotes, and what stands between it and the one before.
struct Span<'a> {
    gap: &'a str,
    word: String,
}

fn spans(page: &str) -> Vec<Span<'_>> {
    let mut parts = page.split('`');
    let mut gap = parts.next().unwrap_or("");
    let mut spans = Vec::new();
    while let (Some(word), Some(next)) = (parts.next(), parts.next()) {
        spans.push(Span { gap, word: word.split_whitespace().collect::<Vec<_>>().join(" ") });
        gap = next;
    }
    spans
}

/// The page without its pictures.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

fn is_path(word: &str, root: &Path) -> bool {
    let first = word.split('/').next().unwrap_or("");
    word.contains('/')
        && !first.is_empty()
        && root.join(first).exists()
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
}

/// `function` or `Type::function`.
fn function(word: &str) -> Option<(Option<&str>, &str)> {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    match word.split_once("::") {
        Some((of, name)) => (of.starts_with(char::is_uppercase) && is_name(name)).then_some((Some(of), name)),
        None => is_name(word).then_some((None, word)),
    }
}

fn faults(page: &str, root: &Path) -> Vec<String> {
    let prose = prose(page);
    let (mut faults, mut file, mut is_list) = (Vec::new(), None, false);
    for Span { gap, word } in spans(&prose) {
        // A path, a comma, and its functions with commas between them.
        is_list = is_list && gap.trim() == ",";
        if is_path(&word, root) {
            let path = root.join(&word);
            if !path.exists() {
                faults.push(format!("{word} is not there"));
            }
            is_list = path.extension().is_some_and(|extension| extension == "rs");
            file = fs::read_to_string(&path).ok().map(|text| (word, text));
        } else if let (true, Some((path, text)), Some((of, name))) = (is_list, &file, function(&word)) {
            let is_there = text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<"));
            let of_it = |line: &str| of.is_none_or(|of| line.starts_with("impl") && line.contains(of));
            if !is_there || !text.lines().any(of_it) {
                faults.push(format!("{path} has no function {word}"));
            }
        }
    }
    faults
}

#[test]
fn all_that_architecture_names_is_there() {
    let root = tree::root();
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the page");
    let named = spans(&prose(&page))
        .iter()
        .filter(|span| function(&span.word).is_some_and(|f| f.0.is_some()))
        .count();
    assert!(named > 50, "only {named} functions with their types");
    assert_eq!(faults(&page, &root), Vec::<String>::new());
}

#[test]
fn what_is_not_there_is_told() {
    let root = tree::root();
    let page = "See `xtask/tests/architecture.rs`, `faults`,\n`Span::faults`, `nowhere`, and `nothing`; `xtask/none.rs`.";
    let expected = [
        "xtask/tests/architecture.rs has no function Span::faults",
        "xtask/tests/architecture.rs has no function nowhere",
        "xtask/none.rs is not there",
    ];
    assert_eq!(faults(page, &root), expected);
}
