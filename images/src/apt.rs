//! Debian packages: lists those installed, installs missing ones, and fetches those of a guest's
//! image.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::progress::Progress;
use crate::run::{self, RunError};

/// A package cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// This is no Debian.
    #[error(
        "install {packages}: apt-get is missing; install the contents of these Debian packages with your system's package manager, \
             or run on Debian or Ubuntu"
    )]
    NoApt {
        /// The packages that are missing.
        packages: String,
    },
    /// Installing takes root.
    #[error("install {packages}: this needs root; run `sudo apt-get install {packages}` and try again")]
    NotRoot {
        /// The packages that are missing.
        packages: String,
    },
    /// apt-get gave up.
    #[error("install {packages}")]
    Install {
        /// The packages that are missing.
        packages: String,
        /// What apt-get said.
        #[source]
        source: RunError,
    },
    /// The recipe names a package that the configured sources do not have.
    #[error(
        "fetch packages: no package {package:?} in this system's apt sources; look for it with `apt-cache search`"
    )]
    Unknown {
        /// The package's name.
        package: String,
    },
    /// Fetching failed.
    #[error("fetch packages (if the lists are old, run `apt-get update` as root)")]
    Fetch {
        /// What apt-get said.
        #[source]
        source: RunError,
    },
    /// A file that fetching needs cannot be written.
    #[error("fetch packages: prepare {}", path.display())]
    Prepare {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// A Debian package and the reason for it, for instance `("flex", "the kernel's configuration")`.
pub type Needed<'a> = (&'a str, &'a str);

/// A version of a package in apt's lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub name: String,
    pub version: String,
}

/// Whether apt's lists have this version of a package.
pub(crate) fn offers(package: &str, version: &str) -> bool {
    offered([package]).iter().any(|have| have.version == version)
}

/// The newest version of a package that apt's lists have.
pub(crate) fn newest_version(package: &str) -> Option<String> {
    offered([package]).into_iter().next().map(|newest| newest.version)
}

/// The versions of packages that apt's lists have: of each package the newest first. Empty if there
/// are no lists.
pub(crate) fn offered<'a>(packages: impl IntoIterator<Item = &'a str>) -> Vec<Package> {
    let mut command = Command::new("apt-cache");
    command.arg("madison").args(packages);
    parse_madison(&run::output(command).unwrap_or_default())
}

/// Reads what `apt-cache madison` prints, a line each: `NAME | VERSION | SOURCE`.
pub(crate) fn parse_madison(text: &str) -> Vec<Package> {
    let lines = text.lines().filter_map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let (name, version) = (columns.next()?.to_owned(), columns.next()?.to_owned());
        Some(Package { name, version })
    });
    lines.collect()
}

/// Those of `packages` that are not installed. Where there is no dpkg that is all of them.
fn missing<'a>(packages: &[Needed<'a>]) -> Vec<Needed<'a>> {
    let mut command = Command::new("dpkg-query");
    command.args(["-W", "-f=${db:Status-Status} ${Package}\n"]).args(packages.iter().map(|(name, _)| name));
    // dpkg-query fails as soon as one package is unknown to it, with the others still on its
    // output.
    let answer = command.output().map(|output| output.stdout).unwrap_or_default();
    let answer = String::from_utf8_lossy(&answer);
    let installed: Vec<&str> = answer.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    packages.iter().copied().filter(|(name, _)| !installed.contains(name)).collect()
}

/// Installs those of `packages` that are missing, and says which and what for.
///
/// The package lists are fetched once if the first try fails.
///
/// # Errors
/// [`AptError`]: not root (with the command to run), no apt-get here, or what apt-get said.
pub fn ensure_packages(packages: &[Needed<'_>], progress: &mut dyn Progress) -> Result<(), AptError> {
    let log = std::env::temp_dir().join(format!("patina-packages-{}.log", std::process::id()));
    ensure_packages_logged(packages, &log, progress)?;
    // Only a failure's log is of use, and its path is in the error; most often there is none at
    // all.
    match std::fs::remove_file(&log) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(AptError::Prepare { path: log, source })
        }
        _ => Ok(()),
    }
}

/// [`ensure_packages`] with the output of apt-get in `log`.
pub(crate) fn ensure_packages_logged(
    packages: &[Needed<'_>],
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<(), AptError> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    let list = names.join(" ");
    if !have_apt() {
        return Err(AptError::NoApt { packages: list });
    }
    if !rustix::process::geteuid().is_root() {
        return Err(AptError::NotRoot { packages: list });
    }
    for (name, what_for) in &missing {
        progress.note(&format!("installing the Debian package {name}: {what_for}"));
    }
    progress.step(&format!("install {list}"));
    let install = |progress: &mut dyn Progress| {
        let mut command = apt_get();
        command.args(["install", "--yes", "--no-install-recommends"]).args(&names);
        counted(command, log, progress)
    };
    if install(progress).is_err() {
        update(log, progress).map_err(|source| AptError::Install { packages: list.clone(), source })?;
        install(progress).map_err(|source| AptError::Install { packages: list, source })?;
    }
    progress.finish();
    Ok(())
}

fn have_apt() -> bool {
    let mut command = Command::new("apt-get");
    command.arg("--version");
    run::output(command).is_ok()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    command
}

fn update(log: &Path, progress: &mut dyn Progress) -> Result<(), RunError> {
    progress.step("apt-get update");
    let mut command = apt_get();
    command.arg("update");
    counted(command, log, progress)
}

/// Runs apt-get and counts the files it fetches and the packages it unpacks.
fn counted(command: Command, log: &Path, progress: &mut dyn Progress) -> Result<(), RunError> {
    let mut steps = 0;
    run::logged(command, log, &mut |line| {
        if line.starts_with("Get:") || line.starts_with("Unpacking ") || line.starts_with("Setting up ") {
            steps += 1;
            progress.advance(steps, None, "files");
        }
    })
}

/// Renews apt's lists of packages.
///
/// # Errors
/// No apt-get here, not root, or what apt-get said.
pub(crate) fn update_lists(log: &Path, progress: &mut dyn Progress) -> Result<(), AptError> {
    if !have_apt() {
        return Err(AptError::NoApt { packages: "packages".to_owned() });
    }
    update(log, progress).map_err(|source| AptError::Fetch { source })
}

/// Fetches one version of a package into `directory`, without what it depends on: the path of its
/// `.deb` file.
///
/// # Errors
/// What apt-get said, or no file came of it.
pub(crate) fn download(
    package: &str,
    version: &str,
    directory: &Path,
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, AptError> {
    progress.step(&format!("fetch {package}"));
    let mut command = apt_get();
    command.current_dir(directory).args(["-oAPT::Sandbox::User=root", "download", "--"]);
    command.arg(format!("{package}={version}"));
    counted(command, log, progress).map_err(|source| AptError::Fetch { source })?;
    let prepare = |source| AptError::Prepare { path: directory.to_owned(), source };
    for entry in std::fs::read_dir(directory).map_err(prepare)? {
        let path = entry.map_err(prepare)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    Err(prepare(std::io::ErrorKind::NotFound.into()))
}

/// Fetches `packages` and all they depend on into `directory` as `.deb` files.
///
/// apt resolves the dependencies as if nothing was installed; nothing is installed by it, and no
/// root is needed. `directory` must be empty.
pub(crate) fn fetch_closure(
    packages: &[String],
    directory: &Path,
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<(), AptError> {
    if !have_apt() {
        return Err(AptError::NoApt { packages: packages.join(" ") });
    }
    let first = fetch(packages, directory, log, progress);
    let Err(source) = first else { return Ok(()) };
    // Lists that are missing or old look just like an unknown package; only root can renew them.
    if rustix::process::geteuid().is_root() {
        update(log, progress).map_err(|source| AptError::Fetch { source })?;
        return fetch(packages, directory, log, progress);
    }
    Err(source)
}

fn fetch(
    packages: &[String],
    directory: &Path,
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<(), AptError> {
    let status = directory.join("status");
    let partial = directory.join("partial");
    std::fs::write(&status, "").map_err(|source| AptError::Prepare { path: status.clone(), source })?;
    std::fs::create_dir_all(&partial)
        .map_err(|source| AptError::Prepare { path: partial.clone(), source })?;
    progress.step(&format!("fetch {} packages and what they need", packages.len()));
    let mut command = apt_get();
    command
        .arg(format!("-oDir::State::status={}", status.display()))
        .arg(format!("-oDir::Cache::archives={}/", directory.display()))
        .args(["-oDebug::NoLocking=true", "-oAPT::Sandbox::User=root", "-oDpkg::Use-Pty=0"])
        .args(["install", "--download-only", "--yes", "--no-install-recommends", "--"])
        .args(packages);
    counted(command, log, progress).map_err(|source| match unknown_package(source.said()) {
        Some(package) => AptError::Unknown { package },
        None => AptError::Fetch { source },
    })
}

/// The package that apt-get says it does not know.
fn unknown_package(said: &str) -> Option<String> {
    said.lines().find_map(|line| {
        let rest = line.strip_prefix("E: Unable to locate package ").or_else(|| {
            line.strip_prefix("E: Package '")
                .and_then(|rest| rest.strip_suffix("' has no installation candidate"))
        })?;
        Some(rest.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn apt_names_the_unknown_package() {
        let said = "Reading package lists...\nE: Unable to locate package nosuch";
        assert_eq!(unknown_package(said).as_deref(), Some("nosuch"));
        let said = "E: Package 'mawk' has no installation candidate";
        assert_eq!(unknown_package(said).as_deref(), Some("mawk"));
        assert_eq!(unknown_package("E: Failed to fetch"), None);
    }

    #[test]
    fn versions_are_read_newest_first() {
        let madison = " linux-source-6.1 | 6.1.192-2 | http://deb/ bookworm/main amd64 Packages\n \
                       linux-source-6.1 |  6.1.172-1 | http://deb/ bookworm/main amd64 Packages\n";
        let read = parse_madison(madison);
        let versions: Vec<&str> = read.iter().map(|package| package.version.as_str()).collect();
        assert_eq!(versions, ["6.1.192-2", "6.1.172-1"]);
        assert!(read.iter().all(|package| package.name == "linux-source-6.1"));
        assert_eq!(parse_madison("N: Unable to locate package x\n"), []);
    }

    #[test]
    fn installed_packages_are_not_installed_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let packages = [("dpkg", "this test"), ("base-files", "this test")];
        ensure_packages_logged(&packages, &log, &mut Silent).unwrap();
        assert!(!log.exists(), "apt-get ran");
        assert_eq!(
            missing(&[("dpkg", ""), ("no-such-package-anywhere", "x")]),
            [("no-such-package-anywhere", "x")]
        );
    }
}
