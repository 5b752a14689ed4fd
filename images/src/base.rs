//! The part of a root file system that comes from Debian: its packages are unpacked, trimmed and
//! prepared.
//!
//! No maintainer script runs. Only two programs of the tree are executed, through the tree's own
//! dynamic linker and without root: busybox lists its applets, and Python compiles its standard
//! library. The tree is a separate product in the cache, because it takes long to build and does
//! not change when the guest's own programs do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::apt;
use crate::cache::{Cache, Key, KeyBuilder};
use crate::files::{self, FileError};
use crate::ld_cache;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::run::{self, RunError};

/// Part of the key: raise it when this module makes another tree from the same recipe.
const BUILDER_VERSION: &str = "1";

const PACKAGES: [apt::Needed<'_>; 1] = [("dpkg", "unpacking the guest's packages")];

/// Removed whatever the recipe says: documents, translations, and tables for other character sets.
const ALWAYS_REMOVED: [&str; 14] = [
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/info",
    "/usr/share/locale",
    "/usr/share/lintian",
    "/usr/share/bug",
    "/usr/share/bash-completion",
    "/usr/share/pixmaps",
    "/usr/share/menu",
    "/usr/share/doc-base",
    "/usr/lib/x86_64-linux-gnu/gconv",
    "/usr/lib/x86_64-linux-gnu/audit",
    "/usr/lib/x86_64-linux-gnu/perl-base",
    "/etc/cron.daily",
];

/// Directories that file systems are mounted on, or that a running system expects.
const DIRECTORIES: [(&str, u32); 14] = [
    ("/dev", 0o755),
    ("/proc", 0o555),
    ("/sys", 0o555),
    ("/run", 0o755),
    ("/tmp", 0o1777),
    ("/mnt", 0o755),
    ("/root", 0o700),
    ("/home", 0o755),
    ("/opt", 0o755),
    ("/srv", 0o755),
    ("/etc/gridcentric", 0o755),
    ("/var/log", 0o755),
    ("/var/lib", 0o755),
    ("/var/tmp", 0o1777),
];

const ETC: [(&str, &str); 9] = [
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n"),
    ("/etc/hostname", "patina\n"),
    ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("/etc/resolv.conf", "# No name server: a family's network is private.\n"),
    (
        "/etc/profile",
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin\nexport PS1='\\h:\\w\\$ '\n",
    ),
    ("/etc/shells", "/bin/sh\n"),
    ("/etc/os-release", "ID=patina\nNAME=Patina\nPRETTY_NAME=\"Patina guest (Debian packages)\"\n"),
];

/// The packages could not be made into a tree.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// A program failed.
    #[error("build the guest's tree: {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the program said.
        #[source]
        source: RunError,
    },
    /// A file of the tree cannot be read or written.
    #[error("build the guest's tree")]
    File(#[from] FileError),
}

fn step_failed(step: &'static str) -> impl FnOnce(RunError) -> BaseError {
    move |source| BaseError::Step { step, source }
}

/// The key of the tree that `recipe` asks for: only what this module uses goes into it.
pub fn key(recipe: &Recipe) -> Key {
    let mut key = KeyBuilder::default().input("builder", BUILDER_VERSION.as_bytes());
    for (name, list) in
        [("packages", &recipe.packages), ("exclude", &recipe.exclude_packages), ("remove", &recipe.remove)]
    {
        for entry in list {
            key = key.input(name, entry.as_bytes());
        }
    }
    key.key()
}

/// Finds or builds the tree and returns its path.
pub fn build(cache: &Cache, recipe: &Recipe, progress: &mut dyn Progress) -> Result<PathBuf, Error> {
    let product = cache.find_or_build("base", &key(recipe), progress, |directory, progress| {
        let log = cache.fresh_log("packages")?;
        apt::ensure_packages_logged(&PACKAGES, &log, progress)?;
        let log = cache.fresh_log("base")?;
        let debs = directory.join("debs");
        files::create_dir(&debs, 0o755).map_err(BaseError::from)?;
        apt::fetch_closure(&recipe.packages, &debs, &log, progress)?;
        make_tree(directory, &debs, recipe, &log, progress).map_err(Error::from)
    })?;
    Ok(product.join("tree"))
}

fn make_tree(
    directory: &Path,
    debs: &Path,
    recipe: &Recipe,
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<(), BaseError> {
    let tree = directory.join("tree");
    merge_usr(&tree)?;
    let unpacked = unpack(&tree, debs, recipe, log, progress)?;
    files::write(&directory.join("packages.txt"), unpacked.join("\n").as_bytes(), 0o644)?;
    files::remove(debs)?;

    progress.step("root file system: trim and furnish");
    for path in ALWAYS_REMOVED.iter().copied().chain(recipe.remove.iter().map(String::as_str)) {
        files::remove(&files::in_tree(&tree, path))?;
    }
    for (path, mode) in DIRECTORIES {
        files::create_dir(&files::in_tree(&tree, path), mode)?;
    }
    for (path, content) in ETC {
        files::write(&files::in_tree(&tree, path), content.as_bytes(), 0o644)?;
    }
    link_applets(&tree)?;
    ld_cache::write(&tree)?;
    compile_python(&tree, log, progress)
}

/// /bin, /sbin, /lib and /lib64 are links into /usr, as in Debian; [`unpack`] goes through them.
fn merge_usr(tree: &Path) -> Result<(), FileError> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        files::create_dir(&tree.join("usr").join(name), 0o755)?;
        files::symlink(&tree.join(name), &format!("usr/{name}"))?;
    }
    Ok(())
}

/// Unpacks every package that is not excluded; returns their file names, which carry the versions.
fn unpack(
    tree: &Path,
    debs: &Path,
    recipe: &Recipe,
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<Vec<String>, BaseError> {
    progress.step("root file system: unpack packages");
    let archive = debs.join("unpacking.tar");
    let mut unpacked = Vec::new();
    for deb in files::entries(debs)? {
        let name = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((package, _)) = name.split_once('_').filter(|_| name.ends_with(".deb")) else { continue };
        if recipe.exclude_packages.iter().any(|excluded| excluded == package) {
            continue;
        }
        unpack_one(tree, &deb, &archive, log)?;
        unpacked.push(name);
        progress.advance(unpacked.len() as u64, None, "packages");
    }
    Ok(unpacked)
}

/// `dpkg-deb --extract` would put a directory in place of each link into /usr, so tar is called
/// here.
fn unpack_one(tree: &Path, deb: &Path, archive: &Path, log: &Path) -> Result<(), BaseError> {
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--fsys-tarfile").arg(deb);
    run::output_to(dpkg, archive).map_err(step_failed("read a package"))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--preserve-permissions"]);
    tar.arg("--file").arg(archive).arg("--directory").arg(tree);
    run::logged(tar, log, &mut |_| {}).map_err(step_failed("unpack a package"))
}

/// Links each busybox applet whose name is not taken by a package's own program.
fn link_applets(tree: &Path) -> Result<(), BaseError> {
    let busybox = files::in_tree(tree, "/usr/bin/busybox");
    if !busybox.exists() {
        return Ok(());
    }
    let mut list = Command::new(&busybox);
    list.arg("--list-full");
    let applets = run::output(list).map_err(step_failed("ask busybox for its applets"))?;
    for applet in applets.lines() {
        let Some((directory, name)) = applet.trim_start_matches("usr/").split_once('/') else { continue };
        let taken = ["bin", "sbin"].iter().any(|place| has(&tree.join("usr").join(place).join(name)));
        // busybox's own linker-less init programs have no inittab here.
        if taken || !["bin", "sbin"].contains(&directory) || ["init", "linuxrc"].contains(&name) {
            continue;
        }
        let target = if directory == "bin" { "busybox" } else { "../bin/busybox" };
        files::symlink(&tree.join("usr").join(directory).join(name), target)?;
    }
    Ok(())
}

/// Whether anything is there, a link that leads nowhere included.
fn has(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Compiles Python's modules, so that no guest does that at each start, on a file system it cannot
/// write to.
///
/// The files are "unchecked": Python then takes them without looking at the source's time or
/// content.
fn compile_python(tree: &Path, log: &Path, progress: &mut dyn Progress) -> Result<(), BaseError> {
    let Some(library) = python_library(tree)? else { return Ok(()) };
    let Some(version) = library.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Ok(());
    };
    // Debian's hook for crash reports: one more import at each start, for a program that is not
    // there.
    files::remove(&library.join("sitecustomize.py"))?;
    files::remove(&files::in_tree(tree, &format!("/etc/{version}")))?;
    progress.step("root file system: compile Python's standard library");
    let mut python = tree_python(tree, &version);
    python.args(["-m", "compileall", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s"]).arg(tree);
    python.args(["-p", "/"]).arg(&library);
    let mut modules = 0;
    run::logged(python, log, &mut |line| {
        if line.starts_with("Compiling ") {
            modules += 1;
            progress.advance(modules, None, "modules");
        }
    })
    .map_err(step_failed("compile Python's standard library"))
}

/// `/usr/lib/python3.N` of the tree.
fn python_library(tree: &Path) -> Result<Option<PathBuf>, FileError> {
    let library = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3."))
            && path.join("os.py").exists()
    };
    Ok(files::entries(&tree.join("usr/lib"))?.into_iter().find(library))
}

/// The tree's Python, run on this host with the tree's libraries and nothing of the host's Python.
fn tree_python(tree: &Path, version: &str) -> Command {
    let mut python = Command::new(files::in_tree(tree, "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    python
        .arg("--library-path")
        .arg(files::in_tree(tree, "/usr/lib/x86_64-linux-gnu"))
        .arg(tree.join("usr/bin").join(version))
        .args(["-S", "-B", "-X", "utf8"])
        .env("PYTHONHOME", tree.join("usr"))
        .env_remove("PYTHONPATH")
        .env_remove("LD_PRELOAD");
    python
}
