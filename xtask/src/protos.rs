//! Checks of the .proto files with buf: lint, format, and whether clients of before still work.
//!
//! buf comes from its npm package and is kept in the cache. Where it cannot be installed, its
//! checks are skipped with the reason.

use crate::{
    run::{RunError, output, run, run_within, workspace},
    steps::{Steps, with_causes},
};
use patina_images::cache::CacheError;
use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::{self, Command},
    time::Duration,
};

/// The version of buf.
const VERSION: &str = "1.75.0";
/// The npm package that has the program for this platform.
const PACKAGE: &str = "@bufbuild/buf-linux-x64";
/// The list of changes that break clients. The last commit that changed it is what the .proto files
/// are compared with.
const BREAKING: &str = "proto/BREAKING.md";
/// What buf needs of that commit.
const COMPARED: [&str; 2] = ["buf.yaml", "proto/patina"];
/// The exit code of buf when it has found something. Other codes are failures of buf itself.
const FOUND: i32 = 100;
/// How long npm may take for a first answer of its registry. npm's own limits do not cover the
/// connection.
const REACH: Duration = Duration::from_secs(10);
/// How long the installation may take.
const INSTALL: Duration = Duration::from_secs(120);
/// What git sets for the programs that it starts, such as hooks. With these, git works on another
/// repository than that of the current folder.
const GIT_VARIABLES: [&str; 8] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// Why buf cannot be installed.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    /// No place for it is known.
    #[error("find a place for buf")]
    Cache(#[from] CacheError),
    /// npm did not do it.
    #[error("install buf with npm")]
    Npm(#[from] RunError),
    /// It could not be put in its place.
    #[error("keep buf in {}", .1.display())]
    Keep(#[source] io::Error, PathBuf),
    /// The package is not what it was.
    #[error("npm installed {PACKAGE} {VERSION}, which has no program {0}")]
    Program(String),
}

/// Runs buf's checks.
pub fn check(steps: &Steps) -> Result<(), RunError> {
    let tools = patina_images::default_cache_dir().map(|cache| cache.join("buf"));
    let installed =
        tools.map_err(InstallError::from).and_then(|tools| install(steps, &tools, &|| Command::new("npm")));
    let buf = match installed {
        Ok(buf) => buf,
        Err(error) => {
            steps.note(&format!("skipped: buf lint and buf breaking ({})", on_one_line(&error)));
            return Ok(());
        }
    };
    let buf = |arguments: &[&str]| {
        let mut command = Command::new(&buf);
        command.current_dir(workspace()).args(arguments);
        command
    };
    steps.step("lint the protos", || run(&mut buf(&["lint"])))?;
    steps.step("check the format of the protos", || run(&mut buf(&["format", "--diff", "--exit-code"])))?;
    match earlier(workspace()) {
        Ok(earlier) => {
            let against = earlier.folder.path().display().to_string();
            compare(steps, &earlier, &mut buf(&["breaking", "--against", &against]))
        }
        Err(error) => {
            steps.note(&format!("skipped: buf breaking ({})", on_one_line(&*error)));
            Ok(())
        }
    }
}

/// Compares the protos with those of before. While the list of breaks is being changed, what is
/// found is only printed.
fn compare(steps: &Steps, earlier: &Earlier, buf: &mut Command) -> Result<(), RunError> {
    let what = format!("compare the protos with those of commit {}", earlier.commit);
    if !earlier.changed {
        return steps.step(&what, || run(buf));
    }
    steps.note(&format!("{what} …"));
    match run(buf) {
        Ok(()) => steps.note(&format!("{BREAKING} is changed, but no change of the protos breaks clients")),
        Err(RunError::Status { status, .. }) if status.code() == Some(FOUND) => steps.note(&format!(
            "the changes above break clients. They are accepted, as {BREAKING} is changed: look whether it lists them all"
        )),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// buf, from the cache in `tools` or from npm.
fn install(steps: &Steps, tools: &Path, npm: &dyn Fn() -> Command) -> Result<PathBuf, InstallError> {
    let (folder, partial) = (tools.join(VERSION), tools.join(format!("{VERSION}.{}", process::id())));
    let inside = Path::new("node_modules").join(PACKAGE).join("bin/buf");
    let program = folder.join(&inside);
    if program.is_file() {
        return Ok(program);
    }
    let keep = |error| InstallError::Keep(error, folder.clone());
    fs::create_dir_all(&partial).map_err(keep)?;
    remove_leftovers(tools).map_err(keep)?;
    let installed = steps.step("install buf", || with_npm(npm, &partial)).map_err(InstallError::from);
    // Whole or not at all.
    let placed = installed.and_then(|()| match partial.join(&inside).is_file() {
        true => place(&partial, &folder, &program).map_err(keep),
        false => Err(InstallError::Program(inside.display().to_string())),
    });
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(keep)?;
    }
    placed.map(|()| program)
}

/// Installs the package in `folder`.
fn with_npm(npm: &dyn Fn() -> Command, folder: &Path) -> Result<(), RunError> {
    let package = format!("{PACKAGE}@{VERSION}");
    // A machine that reaches no registry is told so soon.
    let mut ask = npm();
    ask.args(["view", "--loglevel=error", "--fetch-retries=0", &package, "version"]);
    run_within(&mut ask, REACH)?;
    let mut install = npm();
    install
        .args(["install", "--loglevel=error", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"])
        .args(["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"])
        .args(["--fetch-timeout=10000", "--prefix"])
        .arg(folder)
        .arg(&package);
    run_within(&mut install, INSTALL)
}

/// Renames what was installed. Another test may have put it there meanwhile. Anything else that is
/// there has no program and goes.
fn place(partial: &Path, folder: &Path, program: &Path) -> io::Result<()> {
    if folder.exists() && !program.is_file() {
        fs::remove_dir_all(folder)?;
    }
    match fs::rename(partial, folder) {
        Err(_) if program.is_file() => Ok(()),
        renamed => renamed,
    }
}

/// Removes the folders of installations that were killed: their processes are gone.
fn remove_leftovers(tools: &Path) -> io::Result<()> {
    for entry in fs::read_dir(tools)? {
        let entry = entry?;
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix(VERSION)).and_then(|rest| rest.strip_prefix('.'));
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            match fs::remove_dir_all(entry.path()) {
                // Another test has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

/// The .proto files that clients of before know.
#[derive(Debug)]
struct Earlier {
    /// They are in it.
    folder: tempfile::TempDir,
    /// The commit that they are from, for people.
    commit: String,
    /// [`BREAKING`] is changed, and the change is no commit yet: clients are to break.
    changed: bool,
}

/// The .proto files as they were when clients were last allowed to break.
fn earlier(root: &Path) -> Result<Earlier, Box<dyn Error>> {
    let git = |arguments: &[&str]| {
        let mut command = git(root);
        command.args(arguments);
        command
    };
    let changed = !output(&mut git(&["status", "--porcelain", "--", BREAKING]))?.is_empty();
    let commit = output(&mut git(&["log", "-1", "--format=%h", "--", BREAKING]))?.trim().to_owned();
    if commit.is_empty() {
        return Err(format!("no commit has {BREAKING}").into());
    }
    let shallow = output(&mut git(&["rev-parse", "--is-shallow-repository"]))?.trim() == "true";
    // The oldest commit of a shallow clone seems to add every file. It may even be the current one.
    if shallow && output(&mut git(&["log", "-1", "--format=%p", &commit]))?.trim().is_empty() {
        let reason = "shallow clone, without the last commit that changed";
        return Err(format!("{reason} {BREAKING}; `git fetch --unshallow` gets it").into());
    }
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("protos.tar").display().to_string();
    run(git(&["archive", "--output", &archive, &commit, "--"]).args(COMPARED))?;
    run(Command::new("tar").current_dir(folder.path()).args(["-xf", &archive]))?;
    Ok(Earlier { folder, commit, changed })
}

/// git, in the repository of `root` and no other.
fn git(root: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(root);
    for variable in GIT_VARIABLES {
        command.env_remove(variable);
    }
    command
}

fn on_one_line(error: &dyn Error) -> String {
    with_causes(error).lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "protos_test.rs"]
mod tests;
