//! Checks of the .proto files with buf: lint, format, and whether clients of before still work.
//!
//! buf comes from its npm package and is kept in the cache. Where it cannot be installed, its checks are skipped with
//! the reason.

use crate::{
    run::{RunError, output, run, workspace},
    steps::{Steps, with_causes},
};
use patina_images::cache::CacheError;
use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::{self, Command},
};

/// The version of buf.
const VERSION: &str = "1.75.0";
/// The npm package that has the program for this platform.
const PACKAGE: &str = "@bufbuild/buf-linux-x64";
/// The list of changes that break clients. The last commit that changed it is what the .proto files are compared with.
const BREAKING: &str = "proto/BREAKING.md";
/// What buf needs of that commit.
const COMPARED: [&str; 2] = ["buf.yaml", "proto/patina"];

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
}

/// Runs buf's checks.
pub fn check(steps: &Steps) -> Result<(), RunError> {
    let buf = match install(steps) {
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
        Ok(Earlier::Commit { folder, commit }) => {
            let what = format!("compare the protos with those of commit {commit}");
            let against = folder.path().display().to_string();
            steps.step(&what, || run(&mut buf(&["breaking", "--against", &against])))
        }
        Ok(Earlier::Changed) => {
            steps.note(&format!("skipped: buf breaking ({BREAKING} is changed: clients are to break)"));
            Ok(())
        }
        Err(error) => {
            steps.note(&format!("skipped: buf breaking ({})", on_one_line(&*error)));
            Ok(())
        }
    }
}

/// buf, from the cache or from npm.
fn install(steps: &Steps) -> Result<PathBuf, InstallError> {
    let tools = patina_images::default_cache_dir()?.join("buf");
    let (folder, partial) = (tools.join(VERSION), tools.join(format!("{VERSION}.{}", process::id())));
    let program = folder.join("node_modules").join(PACKAGE).join("bin/buf");
    if program.is_file() {
        return Ok(program);
    }
    let keep = |error| InstallError::Keep(error, folder.clone());
    fs::create_dir_all(&partial).map_err(keep)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--loglevel=error", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"])
        // A machine that reaches no registry is told so soon.
        .args(["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"])
        .args(["--fetch-timeout=60000", "--prefix"])
        .arg(&partial)
        .arg(format!("{PACKAGE}@{VERSION}"));
    let installed = steps.step("install buf", || run(&mut npm)).map_err(InstallError::from);
    // Whole or not at all. Another test may have put it there meanwhile.
    let placed = installed.and_then(|()| match fs::rename(&partial, &folder) {
        Err(_) if program.is_file() => Ok(()),
        renamed => renamed.map_err(keep),
    });
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(keep)?;
    }
    placed.map(|()| program)
}

/// The .proto files that clients of before know.
#[derive(Debug)]
enum Earlier {
    /// Those of a commit, in a folder of their own.
    Commit {
        /// The folder.
        folder: tempfile::TempDir,
        /// The commit, for people.
        commit: String,
    },
    /// [`BREAKING`] is changed, and the change is no commit yet.
    Changed,
}

/// The .proto files as they were when clients were last allowed to break.
fn earlier(root: &Path) -> Result<Earlier, Box<dyn Error>> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(root).args(arguments);
        command
    };
    if !output(&mut git(&["status", "--porcelain", "--", BREAKING]))?.is_empty() {
        return Ok(Earlier::Changed);
    }
    // In a shallow clone it may be the oldest commit that is there.
    let commit = output(&mut git(&["log", "-1", "--format=%h", "--", BREAKING]))?.trim().to_owned();
    if commit.is_empty() {
        return Err(format!("no commit has {BREAKING}").into());
    }
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("protos.tar").display().to_string();
    run(git(&["archive", "--output", &archive, &commit, "--"]).args(COMPARED))?;
    run(Command::new("tar").current_dir(folder.path()).args(["-xf", &archive]))?;
    Ok(Earlier::Commit { folder, commit })
}

fn on_one_line(error: &dyn Error) -> String {
    with_causes(error).lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with a commit for each list of files.
    fn repository(commits: &[&[(&str, &str)]]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.current_dir(root.path()).args(["-c", "user.name=a", "-c", "user.email=a@b"]);
            assert!(command.args(arguments).output().expect("git").status.success(), "{arguments:?}");
        };
        git(&["init", "--quiet"]);
        fs::create_dir_all(root.path().join("proto/patina")).expect("a folder");
        for files in commits {
            for (path, content) in *files {
                fs::write(root.path().join(path), content).expect("a file");
            }
            git(&["add", "--all"]);
            git(&["commit", "--quiet", "--message", "x"]);
        }
        root
    }

    #[test]
    fn protos_are_compared_with_those_of_the_last_commit_that_may_break_clients() {
        let root = repository(&[
            &[("buf.yaml", "v"), ("proto/patina/a.proto", "first"), (BREAKING, "none")],
            &[("proto/patina/a.proto", "broken"), (BREAKING, "one")],
            &[("proto/patina/a.proto", "more")],
        ]);
        let Ok(Earlier::Commit { folder, commit }) = earlier(root.path()) else {
            panic!("there is a commit")
        };
        let then = fs::read_to_string(folder.path().join("proto/patina/a.proto")).expect("a file");
        assert_eq!(then, "broken");
        assert!(folder.path().join("buf.yaml").is_file() && commit.len() >= 7, "{commit}");
    }

    #[test]
    fn protos_are_compared_with_nothing_while_the_list_of_breaks_is_being_changed() {
        let root = repository(&[&[("buf.yaml", "v"), ("proto/patina/a.proto", "x"), (BREAKING, "none")]]);
        fs::write(root.path().join(BREAKING), "one").expect("a file");
        assert!(matches!(earlier(root.path()), Ok(Earlier::Changed)));
    }

    #[test]
    fn protos_without_a_history_are_compared_with_nothing_and_the_reason_is_told() {
        let nowhere = tempfile::tempdir().expect("a folder");
        assert!(earlier(nowhere.path()).is_err(), "no repository");
        let root = repository(&[&[("buf.yaml", "v")]]);
        let error = earlier(root.path()).expect_err("no commit has the list");
        assert!(error.to_string().contains(BREAKING), "{error}");
    }
}
