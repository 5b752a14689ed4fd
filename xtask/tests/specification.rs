//! What SPECIFICATION.md names exists: each test, in the crate that is named before it, and each
//! row of a benchmark.

mod tree;

use std::{fs, path::Path};
use tree::{root, walk};

/// Crates as the page calls them, and their folders.
const CRATES: [(&str, &str); 12] = [
    ("daemon", "daemon"),
    ("guest-agent", "guest-agent"),
    ("pager", "pager"),
    ("patina-abi", "proto/abi"),
    ("patina-control", "proto/control"),
    ("patina-snapshot", "snapshot"),
    ("scheduler", "scheduler"),
    ("tests", "tests"),
    ("vmctl", "vmctl"),
    ("vmm", "vmm"),
    ("vmmd", "vmmd"),
    ("xtask", "xtask"),
];
/// The crate of the names that have none before them.
const STORIES: &str = "stories";
const STORIES_FOLDER: &str = "tests/tests/e2e";

/// A test: its crate, and the modules that it is in, its own name last.
#[derive(Debug)]
struct Test {
    of: &'static str,
    path: Vec<String>,
}

/// The functions of a file that are tests: with an attribute that ends so, or in a list of tests.
fn functions(text: &str) -> Vec<String> {
    let listed: Vec<&str> = ["stories![", "named!["]
        .iter()
        .flat_map(|list| text.split(list).skip(1).filter_map(|rest| rest.split(']').next()))
        .collect();
    let is_listed = |name: &str| {
        let words =
            |list: &&str| list.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|w| w == name);
        listed.iter().any(words)
    };
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        let name = line.trim_start_matches("pub ").trim_start_matches("async ").strip_prefix("fn ");
        if let Some(name) = name.and_then(|rest| rest.split(['(', '<']).next()) {
            if is_test || is_listed(name) {
                found.push(name.to_owned());
            }
            is_test = false;
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        }
    }
    // Its trials are named while it runs.
    if text.contains("Trial::test(") {
        found.push(String::new());
    }
    found
}

/// The tests below `folder`, which is the place of the modules `path`.
fn collect(of: &'static str, folder: &Path, path: &[String], found: &mut Vec<Test>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let file = entry.expect("an entry").path();
        let stem = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let is_file = file.extension().is_some_and(|extension| extension == "rs");
        let module = stem.strip_suffix("_test").unwrap_or(&stem).to_owned();
        let is_named = !["mod", "lib", "main", "tests", "src"].contains(&module.as_str());
        let inner = path.iter().cloned().chain(is_named.then_some(module)).collect::<Vec<_>>();
        if file.is_dir() {
            collect(of, &file, &inner, found);
        } else if is_file {
            let names = functions(&fs::read_to_string(&file).expect("a file"));
            found.extend(
                names.into_iter().map(|name| Test { of, path: [inner.clone(), vec![name]].concat() }),
            );
        }
    }
}

fn tests() -> Vec<Test> {
    let mut found = Vec::new();
    for (of, folder) in CRATES {
        for part in ["src", "tests"] {
            collect(of, &root().join(folder).join(part), &[], &mut found);
        }
    }
    collect(STORIES, &root().join(STORIES_FOLDER), &[], &mut found);
    found
}

/// Whether `pattern`, in which `*` stands for any text, is all of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(tail, &rest[at..]))
        }),
    }
}

/// `module::function`, and any part of such a path.
fn exists(of: &str, name: &str, tests: &[Test]) -> bool {
    let parts: Vec<&str> = name.split("::").filter(|part| *part != "tests").collect();
    let fits = |window: &[String]| window.iter().zip(&parts).all(|(text, pattern)| matches(pattern, text));
    tests.iter().any(|test| test.of == of && test.path.windows(parts.len()).any(fits))
}

/// The last cells of the tables that say what enforces something.
fn cells(page: &str) -> Vec<&str> {
    let (mut cells, mut is_wanted) = (Vec::new(), false);
    for line in page.lines() {
        let Some(cell) = line.strip_prefix('|').and_then(|row| row.trim_end().strip_suffix('|')) else {
            is_wanted = false;
            continue;
        };
        let cell = cell.rsplit(" | ").next().unwrap_or("").trim();
        match cell {
            "enforced by" => is_wanted = true,
            "---" => {}
            _ if is_wanted => cells.push(cell),
            _ => {}
        }
    }
    cells
}

/// The names in a cell, each with its crate. A semicolon ends what a crate's name is said for.
fn names(cell: &str) -> Vec<(String, String)> {
    let mut names = Vec::new();
    for part in cell.split("; ").filter(|part| !part.starts_with("the lints")) {
        let mut of = STORIES.to_owned();
        let mut pieces = part.split('`');
        while let Some(gap) = pieces.next() {
            for word in gap.split([' ', ',', '(']) {
                let is_crate = |name: &str| CRATES.iter().any(|(of, _)| *of == name);
                if word == "bench" {
                    word.clone_into(&mut of);
                } else if let Some(name) = word.strip_suffix(':').filter(|name| is_crate(name)) {
                    name.clone_into(&mut of);
                }
            }
            if let Some(name) = pieces.next().filter(|name| !name.contains([' ', '-'])) {
                names.push((of.clone(), name.to_owned()));
            }
        }
    }
    names
}

fn faults(page: &str) -> Vec<String> {
    let tests = tests();
    let mut benches = Vec::new();
    walk(&root().join("benches/src"), &mut benches);
    let rows: String = benches.iter().map(|path| fs::read_to_string(path).expect("a file")).collect();
    let mut faults = Vec::new();
    for cell in cells(page) {
        let names = names(cell);
        if names.is_empty() {
            faults.push(format!("no test is named in: {cell}"));
        }
        for (of, name) in names {
            let is_there = match of.as_str() {
                "bench" => rows.contains(&format!("\"{name}\"")),
                of => exists(of, &name, &tests),
            };
            if !is_there {
                faults.push(format!("{of}: {name} does not exist"));
            }
        }
    }
    faults
}

#[test]
fn every_test_and_bench_that_the_specification_names_exists() {
    let page = fs::read_to_string(root().join("SPECIFICATION.md")).expect("the page");
    assert!(cells(&page).len() > 100, "{} guarantees", cells(&page).len());
    assert_eq!(faults(&page), Vec::<String>::new());
}

#[test]
fn a_name_that_does_not_exist_is_reported() {
    let page = "\
| guarantee | enforced by |
| --- | --- |
| a | xtask: `specification::a_name_that_*`, `specification::no_such_test`; `boot::gc_*`, `boot::gd_*` |
| b | vmm: `no_such_module`; bench `pause_first_us`, `pause_last_us` |
| c | vmm: `tiny_guests::clones_of_clones_go_on_however_deep`, `tiny_guests::end_all` |
| d | good will |

| what | limit |
| --- | --- |
| e | `f` |
";
    let expected = [
        "xtask: specification::no_such_test does not exist",
        "stories: boot::gd_* does not exist",
        "vmm: no_such_module does not exist",
        "bench: pause_last_us does not exist",
        "vmm: tiny_guests::end_all does not exist",
        "no test is named in: good will",
    ];
    assert_eq!(faults(page), expected);
}
