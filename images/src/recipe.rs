//! Recipes: the contents of a root file system. `images/README.md` describes the format.
//!
//! Anybody may supply a recipe, and its strings become file names and arguments of commands. So
//! everything is checked here: names by their alphabet, paths must be absolute and without `..`,
//! and all lists are bounded.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

/// Most packages, files, binaries, symlinks or removals that a recipe may list.
const LIST_MAX: usize = 1024;
/// Longest recipe.
const RECIPE_MAX_BYTES: u64 = 1024 * 1024;
/// Deepest chain of includes.
const INCLUDE_DEPTH_MAX: usize = 8;

const BUILTIN: [(&str, &str); 3] = [
    ("default", include_str!("../recipes/default.toml")),
    ("bench", include_str!("../recipes/bench.toml")),
    ("tools", include_str!("../recipes/tools.toml")),
];

/// A recipe is not usable.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a built-in name nor a readable file.
    #[error(
        "read recipe {name:?}: neither one of the built-in recipes (default, bench, tools) nor a readable file"
    )]
    Read {
        /// What was asked for.
        name: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a recipe.
    #[error("parse recipe {name:?}")]
    Parse {
        /// The recipe.
        name: String,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The file is longer than a recipe may be.
    #[error("read recipe {name:?}: it has {bytes} bytes, the maximum is {RECIPE_MAX_BYTES}")]
    TooLong {
        /// The recipe.
        name: String,
        /// Its length.
        bytes: u64,
    },
    /// A list is longer than it may be.
    #[error("check recipe {name:?}: {list} has {entries} entries, the maximum is {LIST_MAX}")]
    TooMany {
        /// The recipe.
        name: String,
        /// Which list.
        list: &'static str,
        /// Its length.
        entries: usize,
    },
    /// A value is not one that can be used.
    #[error("check recipe {name:?}: {value:?} is not {expected}")]
    Invalid {
        /// The recipe.
        name: String,
        /// The value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Recipes include each other, or a very long chain.
    #[error(
        "read recipe {name:?}: includes are nested more than {INCLUDE_DEPTH_MAX} deep (is there a cycle?)"
    )]
    TooDeep {
        /// The recipe at which it was given up.
        name: String,
    },
}

/// A program from the directory of guest programs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binary {
    /// File name in the directory of guest programs.
    pub name: String,
    /// Absolute path in the guest.
    pub path: String,
}

/// A further file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraFile {
    /// Absolute path in the guest.
    pub path: String,
    /// The content.
    pub content: String,
    /// Whether it is a program: mode 0755 rather than 0644.
    #[serde(default)]
    pub executable: bool,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    /// Absolute path in the guest.
    pub path: String,
    /// What it points to.
    pub target: String,
}

/// What a root file system is made of, with all includes already merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The recipe's name, without directory and extension.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Debian packages, sorted, each once.
    pub packages: Vec<String>,
    /// Packages of the closure that are left out.
    pub exclude_packages: Vec<String>,
    /// Absolute paths that are removed after unpacking.
    pub remove: Vec<String>,
    /// Programs from the directory of guest programs.
    pub binaries: Vec<Binary>,
    /// Further files.
    pub files: Vec<ExtraFile>,
    /// Further symbolic links.
    pub symlinks: Vec<Symlink>,
}

/// The recipe as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    description: String,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    exclude_packages: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
    #[serde(default)]
    binary: Vec<Binary>,
    #[serde(default)]
    file: Vec<ExtraFile>,
    #[serde(default)]
    symlink: Vec<Symlink>,
}

impl Recipe {
    /// The recipe of that built-in name, or else in the file at that path.
    ///
    /// # Errors
    /// [`RecipeError`], with the recipe's name and the value at fault.
    pub fn load(name: &str) -> Result<Self, RecipeError> {
        load(name, Path::new("."), 0)
    }

    /// Names of the built-in recipes.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }
}

fn load(name: &str, beside: &Path, depth: usize) -> Result<Recipe, RecipeError> {
    if depth > INCLUDE_DEPTH_MAX {
        return Err(RecipeError::TooDeep { name: name.to_owned() });
    }
    let builtin = BUILTIN.iter().find(|(builtin, _)| *builtin == name);
    let (text, path) = match builtin {
        Some((_, text)) => ((*text).to_owned(), PathBuf::from(name)),
        None => {
            let path = beside.join(name);
            (read(name, &path)?, path)
        }
    };
    let written: Written = toml::from_str(&text)
        .map_err(|source| RecipeError::Parse { name: name.to_owned(), source: Box::new(source) })?;
    check(name, &written)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut recipe = Recipe::of(stem, written.description.clone());
    let directory = path.parent().unwrap_or(Path::new("."));
    for include in &written.include {
        recipe.merge(load(include, directory, depth + 1)?);
    }
    recipe.add(written);
    Ok(recipe)
}

fn read(name: &str, path: &Path) -> Result<String, RecipeError> {
    let failed = |source| RecipeError::Read { name: name.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > RECIPE_MAX_BYTES {
        return Err(RecipeError::TooLong { name: name.to_owned(), bytes });
    }
    fs::read_to_string(path).map_err(failed)
}

impl Recipe {
    fn of(name: String, description: String) -> Self {
        Self {
            name,
            description,
            packages: Vec::new(),
            exclude_packages: Vec::new(),
            remove: Vec::new(),
            binaries: Vec::new(),
            files: Vec::new(),
            symlinks: Vec::new(),
        }
    }

    fn add(&mut self, written: Written) {
        self.packages.extend(written.packages);
        self.exclude_packages.extend(written.exclude_packages);
        self.remove.extend(written.remove);
        self.binaries.extend(written.binary);
        self.files.extend(written.file);
        self.symlinks.extend(written.symlink);
        // The order of packages changes nothing in the tree, so it must not change the key either.
        for list in [&mut self.packages, &mut self.exclude_packages, &mut self.remove] {
            list.sort();
            list.dedup();
        }
    }

    fn merge(&mut self, other: Recipe) {
        self.packages.extend(other.packages);
        self.exclude_packages.extend(other.exclude_packages);
        self.remove.extend(other.remove);
        self.binaries.extend(other.binaries);
        self.files.extend(other.files);
        self.symlinks.extend(other.symlinks);
    }
}

fn check(name: &str, written: &Written) -> Result<(), RecipeError> {
    let lists = [
        ("include", written.include.len()),
        ("packages", written.packages.len()),
        ("exclude_packages", written.exclude_packages.len()),
        ("remove", written.remove.len()),
        ("binary", written.binary.len()),
        ("file", written.file.len()),
        ("symlink", written.symlink.len()),
    ];
    for (list, entries) in lists {
        if entries > LIST_MAX {
            return Err(RecipeError::TooMany { name: name.to_owned(), list, entries });
        }
    }
    let refuse = |value: &str, expected| {
        Err(RecipeError::Invalid { name: name.to_owned(), value: value.to_owned(), expected })
    };
    for package in written.packages.iter().chain(&written.exclude_packages) {
        if !is_package_name(package) {
            return refuse(package, "a Debian package's name");
        }
    }
    let paths = written.remove.iter();
    let paths = paths.chain(written.binary.iter().map(|binary| &binary.path));
    let paths = paths.chain(written.file.iter().map(|file| &file.path));
    for path in paths.chain(written.symlink.iter().map(|symlink| &symlink.path)) {
        if !is_guest_path(path) {
            return refuse(path, "an absolute path without `..` below the guest's root");
        }
    }
    for binary in &written.binary {
        if !is_file_name(&binary.name) {
            return refuse(&binary.name, "a file name of letters, digits, `-`, `_` and `.`");
        }
    }
    Ok(())
}

/// As in Debian's policy, 5.6.1: so that a name is never taken for an option or a pattern.
fn is_package_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    first && (2..=128).contains(&name.len()) && name.bytes().all(rest) && !name.ends_with(['+', '-'])
}

fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.starts_with(['.', '-']) && name.bytes().all(plain)
}

fn is_guest_path(path: &str) -> bool {
    let mut components = Path::new(path).components();
    let normal = |component| matches!(component, Component::Normal(_));
    components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(normal)
        && !path.contains('\0')
}

#[cfg(test)]
#[path = "recipe_test.rs"]
mod tests;
