//! No modules import each other in a circle, in any crate.
//!
//! The modules of one folder are compared with each other, each with all modules below it. So a
//! circle through a module's child is seen, too. What a path names is looked up through aliases and
//! re-exports, up to the file that defines it. Left out are tests, and imports between a module and
//! the modules above it. A method that is called without its type's path is not seen.

#[path = "circles/modules.rs"]
mod modules;
#[path = "circles/tokens.rs"]
mod tokens;
mod tree;

use modules::Crate;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};
use tree::{root, walk};

/// A circle that is allowed: the file of each of its modules begins with one of these.
struct Allowed {
    files: &'static [&'static str],
    reason: &'static str,
}

const ALLOWED: &[Allowed] = &[Allowed {
    files: &["vmctl/src/cli.rs", "vmctl/src/commands/mod.rs"],
    reason: "clap derives the command line from the arguments of the commands, which it then calls",
}];

/// The most lines that a report shows for each import.
const LINES_MAX: usize = 3;

/// From a file to a file, each with all modules below it: the lines that make it so.
type Edges = BTreeMap<(String, String), BTreeSet<Line>>;

/// A line of a file, and the file from which it imports.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    file: String,
    line: usize,
    target: String,
}

/// The source folder of each member of the workspace.
fn sources(root: &Path) -> Vec<PathBuf> {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
    let members = manifest.split("members = [").nth(1).and_then(|rest| rest.split(']').next());
    let names = members.expect("members").split('"').skip(1).step_by(2);
    let sources: Vec<_> = names.map(|name| root.join(name).join("src")).collect();
    assert!(sources.len() > 12, "{} members", sources.len());
    sources
}

/// The first file of each crate in a source folder.
fn crates(source: &Path) -> Vec<PathBuf> {
    let mut roots = vec![source.join("lib.rs"), source.join("main.rs")];
    if source.join("bin").exists() {
        for entry in fs::read_dir(source.join("bin")).expect("a folder") {
            let path = entry.expect("an entry").path();
            roots.push(if path.is_dir() { path.join("main.rs") } else { path });
        }
    }
    roots.retain(|root| root.exists());
    roots
}

/// The imports of a crate, without those between a module and the modules above it.
fn edges(of: &Crate, root: &Path) -> Edges {
    let name = |at: usize| {
        let file = of.0[at].file.strip_prefix(root).expect("within the root");
        file.display().to_string()
    };
    let mut edges = Edges::new();
    for (at, module) in of.0.iter().enumerate() {
        let sources: Vec<_> = of.ancestors(at).collect();
        for mention in &module.mentions {
            let Some(target) = of.target(at, &mention.path) else { continue };
            let targets: Vec<_> = of.ancestors(target).collect();
            let shared = sources.iter().rev().zip(targets.iter().rev()).take_while(|(a, b)| a == b).count();
            if shared == sources.len() || shared == targets.len() {
                continue;
            }
            let edge = (name(sources[sources.len() - shared - 1]), name(targets[targets.len() - shared - 1]));
            let line = Line { file: name(at), line: mention.line, target: name(target) };
            edges.entry(edge).or_default().insert(line);
        }
    }
    // Modules within one file are one.
    edges.retain(|(source, target), _| source != target);
    edges
}

/// All files that a path of edges leads to.
fn reached<'a>(from: &'a str, edges: &'a Edges) -> BTreeSet<&'a str> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        let targets = edges.keys().filter(|(source, _)| source == file).map(|(_, target)| target.as_str());
        next.extend(targets.filter(|target| reached.insert(*target)));
    }
    reached
}

/// The strongly connected components of more than one file.
fn circles(edges: &Edges) -> BTreeSet<BTreeSet<&str>> {
    let sources: BTreeSet<_> = edges.keys().map(|(source, _)| source.as_str()).collect();
    let reached: BTreeMap<_, _> = sources.into_iter().map(|file| (file, reached(file, edges))).collect();
    let circle = |(file, targets): (&&str, &BTreeSet<_>)| -> BTreeSet<_> {
        let is_back = |other: &&&str| reached.get(*other).is_some_and(|targets| targets.contains(file));
        targets.iter().filter(is_back).copied().collect()
    };
    reached.iter().map(circle).filter(|circle| !circle.is_empty()).collect()
}

/// The circle, with the lines that make it.
fn report(circle: &BTreeSet<&str>, edges: &Edges) -> String {
    let mut report = format!("{} modules in a circle:", circle.len());
    for ((source, target), lines) in edges {
        if circle.contains(source.as_str()) && circle.contains(target.as_str()) {
            report += &format!("\n  {source} imports {target}");
            for Line { file, line, target } in lines.iter().take(LINES_MAX) {
                report += &format!("\n    {file}:{line}: from {target}");
            }
            if lines.len() > LINES_MAX {
                report += &format!("\n    and {} lines more", lines.len() - LINES_MAX);
            }
        }
    }
    report
}

/// Circles that are not allowed, and entries that no circle needs.
fn faults(edges: &Edges, allowed: &[Allowed]) -> Vec<String> {
    let circles = circles(edges);
    let mut needless: Vec<_> = allowed.iter().collect();
    let mut faults = Vec::new();
    for circle in &circles {
        let is_within = |allowed: &Allowed| {
            circle.iter().all(|file| allowed.files.iter().any(|start| file.starts_with(start)))
        };
        match allowed.iter().find(|allowed| is_within(allowed)) {
            Some(found) => needless.retain(|allowed| !std::ptr::eq(*allowed, found)),
            None => faults.push(report(circle, edges)),
        }
    }
    let needless = needless
        .into_iter()
        .map(|Allowed { files, reason }| format!("no circle in {files:?} is left to allow ({reason})"));
    faults.extend(needless);
    faults
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let (root, mut all) = (root(), Edges::new());
    for crate_root in sources(&root).iter().flat_map(|source| crates(source)) {
        all.extend(edges(&Crate::read(&crate_root), &root));
    }
    assert!(all.len() > 500, "only {} edges", all.len());
    let faults = faults(&all, ALLOWED);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_without_tests_is_read() {
    let (mut present, mut read) = (Vec::new(), BTreeSet::new());
    for source in sources(&root()) {
        walk(&source, &mut present);
        for crate_root in crates(&source) {
            read.extend(Crate::read(&crate_root).0.into_iter().map(|module| module.file));
        }
    }
    // Modules that are compiled for tests only.
    let is_test = |file: &Path| {
        let name = file.display().to_string();
        ["_test.rs", "/testing.rs", "/cli/man.rs"].iter().any(|end| name.ends_with(end))
            || ["/core/tests/", "/directory/tests/"].iter().any(|folder| name.contains(folder))
    };
    let missed: Vec<_> = present.iter().filter(|file| !read.contains(*file) && !is_test(file)).collect();
    assert_eq!(missed, Vec::<&PathBuf>::new());
}

/// The faults of a crate with these files.
fn faults_of(files: &[(&str, &str)], allowed: &[Allowed]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    faults(&edges(&Crate::read(&folder.path().join("lib.rs")), folder.path()), allowed)
}

#[test]
fn a_circle_is_told_with_its_lines() {
    let faults = faults_of(
        &[
            ("lib.rs", "mod a;\nmod b;\nmod c;"),
            ("a.rs", "use crate::{\n    b::{self as other, B},\n    c,\n};"),
            ("b.rs", "//! crate::a\nfn b() {\n    let text = \"crate::a::A\";\n    vec![super::c::C];\n}"),
            ("c.rs", "use super::a as first;\npub fn c() { first::a() }"),
        ],
        &[],
    );
    let expected = "3 modules in a circle:\
        \n  a.rs imports b.rs\n    a.rs:2: from b.rs\
        \n  a.rs imports c.rs\n    a.rs:3: from c.rs\
        \n  b.rs imports c.rs\n    b.rs:4: from c.rs\
        \n  c.rs imports a.rs\n    c.rs:1: from a.rs\n    c.rs:2: from a.rs";
    assert_eq!(faults, [expected]);
}

#[test]
fn a_circle_is_found_through_reexports_globs_and_children() {
    let faults = faults_of(
        &[
            ("lib.rs", "mod a;\nmod b;\npub use b::deep::Deep;"),
            ("a.rs", "use crate::Deep;\npub struct A;"),
            ("b/mod.rs", "pub mod deep;\nmod other;"),
            ("b/deep.rs", "pub struct Deep;"),
            ("b/other.rs", "use crate::*;\nfn other() -> a::A { a::A }"),
        ],
        &[],
    );
    let expected = "2 modules in a circle:\
        \n  a.rs imports b/mod.rs\n    a.rs:1: from b/deep.rs\
        \n  b/mod.rs imports a.rs\n    b/other.rs:2: from a.rs";
    assert_eq!(faults, [expected]);
}

#[test]
fn tests_parents_and_visibility_make_no_circle() {
    let faults = faults_of(
        &[
            ("lib.rs", "mod a;\nmod b;\nuse a::A;\npub struct Root;"),
            (
                "a.rs",
                "use crate::Root;\n#[cfg(test)]\nuse crate::{b::B};\npub struct A;\n#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}",
            ),
            (
                "b.rs",
                "use crate::a::A;\npub(in crate::a) struct B<'a>(&'a str, char);\nconst QUOTE: char = '\"';",
            ),
        ],
        &[],
    );
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn an_allowed_circle_that_is_gone_is_told() {
    let files = [("lib.rs", "mod a;\nmod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", "use crate::a::A;")];
    let allow = |files| [Allowed { files, reason: "two halves" }];
    assert_eq!(faults_of(&files, &allow(&["a.rs", "b.rs"])), Vec::<String>::new());
    assert_eq!(faults_of(&files, &allow(&["a.rs"])).len(), 2, "the circle, and an entry that allows none");
    let open = [files[0], files[1], ("b.rs", "pub struct B;")];
    let expected = "no circle in [\"a.rs\", \"b.rs\"] is left to allow (two halves)";
    assert_eq!(faults_of(&open, &allow(&["a.rs", "b.rs"])), [expected]);
}
