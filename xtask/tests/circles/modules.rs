//! The modules of one crate, and what each of them imports.

use crate::tokens::{Kind, Tokens};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A name that a module brings into scope, or a glob.
struct Import {
    name: Option<String>,
    path: Vec<String>,
}

/// A path in a module's source.
pub struct Mention {
    pub path: Vec<String>,
    pub line: usize,
}

pub struct Module {
    pub file: PathBuf,
    pub mentions: Vec<Mention>,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// Where the files of its children are.
    folder: PathBuf,
}

/// The modules of a crate, the root first. Tests are left out.
pub struct Crate(pub Vec<Module>);

/// What a path leads to: a module, or an item in it.
#[derive(Clone, Copy)]
enum Target {
    Module(usize),
    Item(usize),
}

impl Crate {
    pub fn read(root: &Path) -> Crate {
        let mut all = Crate(Vec::new());
        let folder = root.parent().expect("a folder of the root").to_owned();
        all.read_file(root.to_owned(), folder, None);
        all
    }

    /// The module that defines what the path names. None if that is in another crate.
    pub fn target(&self, from: usize, path: &[String]) -> Option<usize> {
        match self.resolve(from, path, 0)? {
            Target::Module(at) | Target::Item(at) => Some(at),
        }
    }

    /// The module and all modules above it.
    pub fn ancestors(&self, of: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(of), |at| self.0[*at].parent)
    }

    fn read_file(&mut self, file: PathBuf, folder: PathBuf, parent: Option<usize>) -> usize {
        let source = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let at = self.add(file, folder, parent);
        self.scan(&mut Tokens::of(&source), at);
        at
    }

    fn add(&mut self, file: PathBuf, folder: PathBuf, parent: Option<usize>) -> usize {
        let (children, items) = (BTreeMap::new(), BTreeSet::new());
        let (mentions, imports) = (Vec::new(), Vec::new());
        self.0.push(Module { file, parent, mentions, children, items, imports, folder });
        self.0.len() - 1
    }

    /// Reads a module up to its closing brace, or to the end of its file.
    fn scan(&mut self, tokens: &mut Tokens, at: usize) {
        let (mut depth, mut path_attribute) = (0, None);
        loop {
            let line = tokens.line();
            if tokens.colons() {
                // The rest of a path that begins with `<Type>` or with another crate.
                while tokens.word().is_some() && tokens.colons() {}
            } else if let Some(word) = tokens.word() {
                match word.as_str() {
                    "use" => self.scan_use(tokens, at, &[], line),
                    "mod" if depth == 0 => self.scan_mod(tokens, at, path_attribute.take()),
                    "const" | "enum" | "fn" | "static" | "struct" | "trait" | "type" | "union"
                        if depth == 0 =>
                    {
                        // Otherwise this is `const fn` or `static mut`.
                        self.0[at].items.extend(tokens.word());
                    }
                    _ => self.scan_path(word, tokens, at, line),
                }
            } else {
                match tokens.next().map(|token| &token.kind) {
                    Some(Kind::Mark('#')) => match attribute(tokens) {
                        Attribute::Test => skip_item(tokens),
                        Attribute::Path(path) => path_attribute = Some(path),
                        Attribute::Other => {}
                    },
                    Some(Kind::Mark('(' | '[' | '{')) => depth += 1,
                    Some(Kind::Mark(')' | ']' | '}')) if depth > 0 => depth -= 1,
                    Some(Kind::Mark('}')) | None => return,
                    Some(_) => {}
                }
            }
        }
    }

    fn scan_path(&mut self, first: String, tokens: &mut Tokens, at: usize, line: usize) {
        // `pub(in path)` imports nothing.
        if first == "pub" && tokens.mark('(') {
            tokens.rest_of_bracket();
            return;
        }
        let mut path = vec![first];
        while tokens.colons() {
            match tokens.word() {
                Some(name) => path.push(name),
                None => break,
            }
        }
        if path.len() > 1 {
            self.0[at].mentions.push(Mention { path, line });
        }
    }

    fn scan_mod(&mut self, tokens: &mut Tokens, at: usize, path: Option<String>) {
        let Some(name) = tokens.word() else { return };
        let folder = self.0[at].folder.join(&name);
        let child = if tokens.mark('{') {
            let child = self.add(self.0[at].file.clone(), folder, Some(at));
            self.scan(tokens, child);
            child
        } else {
            let file = match path {
                Some(path) => self.0[at].file.with_file_name(path),
                None if folder.with_extension("rs").exists() => folder.with_extension("rs"),
                None => folder.join("mod.rs"),
            };
            self.read_file(file, folder, Some(at))
        };
        self.0[at].children.insert(name, child);
    }

    /// Reads a tree of imports up to its semicolon or closing brace.
    fn scan_use(&mut self, tokens: &mut Tokens, at: usize, prefix: &[String], line: usize) {
        let (mut path, mut name) = (prefix.to_vec(), None);
        loop {
            let line = tokens.line().max(line);
            if let Some(word) = tokens.word() {
                match word.as_str() {
                    "as" => name = tokens.word(),
                    "self" if !path.is_empty() => name = path.last().cloned(),
                    _ => {
                        name = Some(word.clone());
                        path.push(word);
                    }
                }
                continue;
            }
            let mark = tokens.next().map(|token| &token.kind);
            match mark {
                Some(Kind::Mark('{')) => {
                    self.scan_use(tokens, at, &path, line);
                    (path, name) = (prefix.to_vec(), None);
                }
                Some(Kind::Mark('*')) => {
                    self.import(at, None, std::mem::replace(&mut path, prefix.to_vec()), line);
                }
                Some(Kind::Mark(',' | '}' | ';')) | None => {
                    let is_end = mark != Some(&Kind::Mark(','));
                    let path = std::mem::replace(&mut path, prefix.to_vec());
                    if let Some(name) = name.take() {
                        self.import(at, Some(name), path, line);
                    }
                    if is_end {
                        return;
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn import(&mut self, at: usize, name: Option<String>, path: Vec<String>, line: usize) {
        self.0[at].mentions.push(Mention { path: path.clone(), line });
        self.0[at].imports.push(Import { name, path });
    }

    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        let first = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(from),
            "super" => Target::Module(self.0[from].parent?),
            name => self.look_up(from, name, depth)?,
        };
        let step = |target, name: &String| match (target, name.as_str()) {
            (Target::Module(at), "super") => Target::Module(self.0[at].parent.unwrap_or(at)),
            (Target::Module(at), name) => self.look_up(at, name, depth).unwrap_or(Target::Item(at)),
            (Target::Item(at), _) => Target::Item(at),
        };
        Some(rest.iter().fold(first, step))
    }

    /// A name in a module's scope: its own, or one that it imports or exports again.
    fn look_up(&self, at: usize, name: &str, depth: usize) -> Option<Target> {
        let module = &self.0[at];
        if let Some(child) = module.children.get(name) {
            return Some(Target::Module(*child));
        }
        if module.items.contains(name) {
            return Some(Target::Item(at));
        }
        // Two globs may import each other.
        if depth > 16 {
            return None;
        }
        let is_it = |import: &&Import| import.name.as_deref() == Some(name) && import.path != [name];
        if let Some(import) = module.imports.iter().find(is_it) {
            return self.resolve(at, &import.path, depth + 1);
        }
        let globs = module.imports.iter().filter(|import| import.name.is_none());
        globs.into_iter().find_map(|glob| match self.resolve(at, &glob.path, depth + 1)? {
            Target::Module(of) if of != at => self.look_up(of, name, depth + 1),
            _ => None,
        })
    }
}

enum Attribute {
    /// The item that follows is compiled for tests only.
    Test,
    /// The module that follows is in this file.
    Path(String),
    Other,
}

/// What follows a `#`.
fn attribute(tokens: &mut Tokens) -> Attribute {
    tokens.mark('!');
    if !tokens.mark('[') {
        return Attribute::Other;
    }
    let text = tokens.rest_of_bracket();
    match text.strip_prefix("path=") {
        Some(path) => Attribute::Path(path.to_owned()),
        None if text.starts_with("cfg(test") || text.starts_with("cfg(any(test") => Attribute::Test,
        None => Attribute::Other,
    }
}

/// Passes over an item with its other attributes: up to the end of its braces, its semicolon, or a
/// field's comma.
fn skip_item(tokens: &mut Tokens) {
    let (mut angles, mut is_use, mut previous) = (0, false, ' ');
    while let Some(token) = tokens.next() {
        let mark = match &token.kind {
            Kind::Mark(mark) => *mark,
            Kind::Word(word) => {
                is_use |= word == "use";
                ' '
            }
            Kind::Text(_) => ' ',
        };
        match mark {
            '(' | '[' | '{' => {
                tokens.rest_of_bracket();
                if mark == '{' && !is_use {
                    return;
                }
            }
            ';' => return,
            ',' if angles == 0 => return,
            '<' => angles += 1,
            '>' if previous != '-' && previous != '=' => angles -= 1,
            _ => {}
        }
        previous = mark;
    }
}
