//! What the code keeps to, as far as a search of its lines can tell.

mod tree;

use std::fs;
use tree::{root, walk};

/// Most lines of a file, without its tests.
const LINES_MAX: usize = 400;
/// Folders of production code.
const ROOMS: [&str; 11] = [
    "daemon/src",
    "guest-agent/src",
    "images/src",
    "proto/abi/src",
    "proto/control/src",
    "proto/src",
    "scheduler/src",
    "vmctl/src",
    "vmm/src",
    "vmmd/src",
    "xtask/src",
];
/// Where `unsafe` stands outside of a module `sys`: entry points without a standard library, and
/// the descriptors that a vmm is started with.
const UNSAFE: [&str; 2] = ["guest-agent/src/bin/", "vmm/src/main.rs"];

/// Each file of production code: its name from the root on, and its lines before its tests.
fn files() -> Vec<(String, Vec<String>)> {
    let root = root();
    let mut paths = Vec::new();
    ROOMS.iter().for_each(|room| walk(&root.join(room), &mut paths));
    assert!(paths.len() > 200, "{} files", paths.len());
    let files = paths.into_iter().map(|path| {
        let name = path.strip_prefix(&root).expect("within the root").display().to_string();
        let text = fs::read_to_string(&path).expect("a file");
        let before_tests = |line: &&str| !line.starts_with("#[cfg(test)]");
        (name, text.lines().take_while(before_tests).map(str::to_owned).collect())
    });
    files.filter(|(name, _): &(String, _)| !name.ends_with("_test.rs") && !name.contains("/tests/")).collect()
}

/// All lines, as `file:line: text`, that `is_fault` finds in their file.
fn faults(is_fault: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let of_file = |(name, lines): (String, Vec<String>)| {
        let lines = lines.into_iter().enumerate().filter(|(_, line)| is_fault(&name, line.trim()));
        lines.map(|(at, line)| format!("{name}:{}: {}", at + 1, line.trim())).collect::<Vec<_>>()
    };
    files().into_iter().flat_map(of_file).collect()
}

#[test]
fn no_file_is_longer_than_one_can_keep_in_mind() {
    let long: Vec<_> = files()
        .into_iter()
        .map(|(name, lines)| (name, lines.len()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    assert_eq!(long, []);
}

#[test]
fn unsafe_code_is_in_modules_of_its_own() {
    let is_unsafe = |name: &str, line: &str| {
        let is_sys = name.contains("/sys/") || name.ends_with("/sys.rs");
        let is_listed = UNSAFE.iter().any(|place| name.starts_with(place));
        let has_it = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "#[unsafe("];
        !is_sys && !is_listed && !line.starts_with("//") && has_it.iter().any(|words| line.contains(words))
    };
    assert_eq!(faults(is_unsafe), Vec::<String>::new());
}

#[test]
fn no_result_is_dropped_without_a_reason() {
    let is_dropped =
        |_: &str, line: &str| line.ends_with(".ok();") && !line.contains(" = ") && !line.starts_with("//");
    let dropped = faults(is_dropped);
    // The end of a statement of several lines may be a value.
    let dropped: Vec<_> = dropped.into_iter().filter(|fault| !fault.ends_with(": .ok();")).collect();
    assert_eq!(dropped, Vec::<String>::new(), "say why with patina_control::best_effort");
}

#[test]
fn no_comment_is_one_word_that_says_nothing() {
    let is_empty = |_: &str, line: &str| {
        let word = line.strip_prefix("/// ").and_then(|text| text.strip_suffix('.'));
        word.is_some_and(|word| {
            ["Which", "Why", "Whose", "What", "Where", "Who", "When", "How"].contains(&word)
        })
    };
    assert_eq!(faults(is_empty), Vec::<String>::new());
}
