//! What the code keeps to, as far as a search of its lines can tell.

mod tree;

use std::fs;
use tree::{root, walk};

/// Most lines of a file, without its tests.
const LINES_MAX: usize = 400;
/// Most columns of a line that is a comment.
const COMMENT_MAX: usize = 100;
/// Folders of production code.
const ROOMS: [&str; 14] = [
    "daemon/src",
    "guest-agent/src",
    "images/src",
    "jail/src",
    "pager/src",
    "proto/abi/src",
    "proto/control/src",
    "proto/src",
    "scheduler/src",
    "snapshot/src",
    "vmctl/src",
    "vmm/src",
    "vmmd/src",
    "xtask/src",
];
/// Where `unsafe` stands outside of a module `sys`: entry points without a standard library, and
/// the descriptors that a vmm or a pager is started with.
const UNSAFE: [&str; 3] = ["guest-agent/src/bin/", "pager/src/main.rs", "vmm/src/main.rs"];

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

#[test]
fn no_comment_is_longer_than_a_reader_s_line() {
    let root = root();
    let mut paths = Vec::new();
    let folders = fs::read_dir(&root).expect("the root").map(|entry| entry.expect("an entry").path());
    folders.filter(|path| path.join("Cargo.toml").is_file()).for_each(|folder| walk(&folder, &mut paths));
    assert!(paths.len() > 500, "{} files", paths.len());
    let long = paths.iter().flat_map(|path| {
        let name = path.strip_prefix(&root).expect("within the root").display().to_string();
        let text = fs::read_to_string(path).expect("a file");
        let long = text.lines().enumerate().filter(|(_, line)| is_long_comment(line));
        long.map(|(at, _)| format!("{name}:{}", at + 1)).collect::<Vec<_>>()
    });
    assert_eq!(long.collect::<Vec<_>>(), Vec::<String>::new(), "wrap these at {COMMENT_MAX} columns");
}

/// Whether the whole line is a comment that could be wrapped: a row of a table cannot, nor can one
/// long word, such as an address.
fn is_long_comment(line: &str) -> bool {
    let text = line.trim_start();
    let words = text.trim_start_matches(['/', '!']).trim_start();
    text.starts_with("//")
        && line.chars().count() > COMMENT_MAX
        && !words.starts_with('|')
        && words.contains(' ')
}

#[test]
fn tables_and_addresses_are_no_long_comments() {
    let long = "word ".repeat(30);
    let cases = [
        (format!("// {long}"), true),
        (format!("    //! {long}"), true),
        (format!("/// | {long}|"), false),
        (format!("// https://{}", "a".repeat(100)), false),
        (format!("let text = \"{long}\";"), false),
        ("// short".to_owned(), false),
    ];
    for (line, expected) in cases {
        assert_eq!(is_long_comment(&line), expected, "{line}");
    }
}

#[test]
fn no_error_message_repeats_its_source() {
    let repeated: Vec<_> = files()
        .into_iter()
        .flat_map(|(name, lines)| {
            let repeated = repeated_sources(&lines.join("\n"));
            repeated.into_iter().map(move |message| format!("{name}: {message}"))
        })
        .collect();
    assert_eq!(repeated, Vec::<String>::new(), "patina_daemon::chain adds the source where it is shown");
}

/// The arguments of each `#[error(…)]` that prints the field marked `#[source]` or `#[from]`, or
/// called `source`.
fn repeated_sources(text: &str) -> Vec<String> {
    let repeats = |piece: &&str| {
        let (message, fields) = piece.split_once(")]\n").unwrap_or((piece, ""));
        // Up to the end of the enum, or of the struct.
        let fields = fields.split("\n}").next().unwrap_or_default();
        let marked = ["#[source]", "#[from]"].iter().find_map(|mark| fields.split_once(mark));
        let is_named = fields.lines().any(|line| {
            let line = line.trim_start();
            line.strip_prefix("pub ").unwrap_or(line).starts_with("source:")
        });
        let name = match marked {
            _ if is_named => "source".to_owned(),
            Some((_, field)) if field.starts_with('\n') => {
                field.trim_start().trim_start_matches("pub ").split(':').next().unwrap_or_default().to_owned()
            }
            Some((before, _)) => before.matches(',').count().to_string(),
            None => return false,
        };
        message.contains(&format!("{{{name}}}")) || message.contains(&format!("{{{name}:"))
    };
    let pieces = text.split("#[error(").skip(1).filter(repeats);
    pieces.map(|piece| piece.split(")]\n").next().unwrap_or_default().trim().to_owned()).collect()
}

#[test]
fn a_repeated_source_is_found_in_each_form_of_an_error() {
    let repeated = [
        "#[error(\"open: {0}\")]\n    Open(#[source] io::Error),\n}\n",
        "#[error(\"open {0}: {1:?}\")]\n    Open(String, #[from] io::Error),\n}\n",
        "#[error(\"open: {why}\")]\n    Open {\n        #[source]\n        why: io::Error,\n    },\n}\n",
        "#[error(\"open: {source}\")]\nstruct Open {\n    pub source: io::Error,\n}\n",
        "#[error(\n    \"open: {source}; look {path}\"\n)]\n    Open {\n        source: io::Error,\n    },\n}\n",
    ];
    for text in repeated {
        assert_eq!(repeated_sources(text).len(), 1, "{text}");
    }
    let others = [
        "#[error(transparent)]\n    Open(#[from] io::Error),\n}\n",
        "#[error(\"open\")]\n    Open(#[source] io::Error),\n}\n",
        "#[error(\"open {0}\")]\n    Open(String, #[source] io::Error),\n}\n",
        "#[error(\"open {0}\")]\n    Open(String),\n    #[error(\"read\")]\n    Read(#[source] io::Error),\n}\n",
    ];
    for text in others {
        assert_eq!(repeated_sources(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn the_log_shows_errors_with_their_causes() {
    // `%error` alone would show the message without its source.
    let is_bare = |_: &str, line: &str| {
        let fields = line.split([',', '(', ' ']).map(str::trim);
        !line.starts_with("//") && fields.into_iter().any(|field| ["%error", "?error"].contains(&field))
    };
    assert_eq!(faults(is_bare), Vec::<String>::new(), "write error = %chain(&error)");
}
