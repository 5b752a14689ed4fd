//! The guest kernel: Debian's kernel source, our configuration, our patches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::apt;
use crate::cache::{Cache, Key, KeyBuilder};
use crate::progress::Progress;
use crate::run::{self, RunError};

const SOURCE_PACKAGE: &str = "linux-source-6.1";
/// The revision that the patches were made for and tested with. The archive keeps revisions for
/// months; when it no longer has this one, the newest is taken.
const SOURCE_VERSION: &str = "6.1.192-2";
/// In the unpacked package.
const SOURCE_TARBALL: &str = "usr/src/linux-source-6.1.tar.xz";
const SOURCE_DIRECTORY: &str = "linux-source-6.1";

const CONFIG: &str = include_str!("../kernel/config");
const PATCHES: [(&str, &str); 9] = [
    ("0001-syscall-gap.patch", include_str!("../kernel/patches/0001-syscall-gap.patch")),
    ("0002-power-off-and-panic.patch", include_str!("../kernel/patches/0002-power-off-and-panic.patch")),
    ("0003-optional-sysfs.patch", include_str!("../kernel/patches/0003-optional-sysfs.patch")),
    ("0004-fresh-boot-id.patch", include_str!("../kernel/patches/0004-fresh-boot-id.patch")),
    ("0005-lazy-struct-pages.patch", include_str!("../kernel/patches/0005-lazy-struct-pages.patch")),
    ("0006-fewer-ticks.patch", include_str!("../kernel/patches/0006-fewer-ticks.patch")),
    ("0007-no-load-on-one-cpu.patch", include_str!("../kernel/patches/0007-no-load-on-one-cpu.patch")),
    ("0008-tell-who-listens.patch", include_str!("../kernel/patches/0008-tell-who-listens.patch")),
    ("0009-no-idle-work.patch", include_str!("../kernel/patches/0009-no-idle-work.patch")),
];

/// Part of the key: raise it when this module builds another kernel from the same inputs.
const BUILDER_VERSION: &str = "1";

/// About how many files the compiler goes through, for the progress line.
const EXPECTED_OBJECTS: u64 = 1330;

/// Parts of the source that no x86 guest kernel needs: unpacking is bound by the number of files.
/// Kconfig reads its own files everywhere, so only what is compiled may stay away.
const UNUSED_SOURCE: [&str; 12] = [
    "Documentation/*/*",
    "arch/arm*/*.[chS]",
    "arch/*/boot/dts/*",
    "arch/mips/*.[chS]",
    "arch/powerpc/*.[chS]",
    "drivers/gpu/*.[ch]",
    "drivers/media/*.[ch]",
    "drivers/net/ethernet/*.[ch]",
    "drivers/net/wireless/*.[ch]",
    "drivers/staging/*.[ch]",
    "sound/*.[ch]",
    "tools/testing/*",
];

const PACKAGES: [apt::Needed<'_>; 10] = [
    ("dpkg", "unpacking the kernel's source package"),
    ("gcc", "compiling the kernel"),
    ("libc6-dev", "programs that the kernel's build compiles and runs"),
    ("make", "the kernel's build"),
    ("flex", "the kernel's configuration"),
    ("bison", "the kernel's configuration"),
    ("bc", "the kernel's time constants"),
    ("libelf-dev", "objtool, which checks the kernel's objects"),
    ("patch", "applying the kernel's patches"),
    ("xz-utils", "unpacking the kernel's source"),
];

/// The kernel did not build.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A program of the build failed.
    #[error("build the guest kernel: {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the program said.
        #[source]
        source: RunError,
    },
    /// A file of the build cannot be read or written.
    #[error("build the guest kernel: {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A patch does not fit: the source is not the one that the patches were made for.
    #[error(
        "build the guest kernel: a patch does not fit {SOURCE_PACKAGE} {version}; the patches were made for {SOURCE_VERSION}: \
             add an apt source that has it, or fit images/kernel/patches"
    )]
    Patch {
        /// The revision that was fetched.
        version: String,
        /// What `patch` said.
        #[source]
        source: RunError,
    },
    /// No apt source has the kernel's source.
    #[error(
        "build the guest kernel: no package {SOURCE_PACKAGE} in this system's apt sources (Debian 12 has it)"
    )]
    NoSource,
    /// The configuration asks for what this source does not have, or for options whose conditions
    /// are not met.
    #[error("build the guest kernel: Kconfig dropped these lines of images/kernel/config: {}", lines.join(", "))]
    Dropped {
        /// The lines that are not in the result.
        lines: Vec<String>,
    },
}

fn step_failed(step: &'static str) -> impl FnOnce(RunError) -> KernelError {
    move |source| KernelError::Step { step, source }
}

fn file_failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::File { operation, path, source }
}

/// Finds or builds `vmlinux`.
pub fn build(cache: &Cache, progress: &mut dyn Progress) -> Result<PathBuf, Error> {
    let recipe = recipe_key();
    let tested = cache.find("kernel", &recipe.with_suffix(SOURCE_VERSION));
    // A cached kernel of another revision serves, too: nothing need be fetched.
    if let Some(product) = tested.or_else(|| cache.find_any_suffix("kernel", &recipe)) {
        return Ok(product.join("vmlinux"));
    }
    let log = cache.fresh_log("packages")?;
    apt::ensure_packages_logged(&PACKAGES, &log, progress)?;
    let version = offered_version(&log, progress)?;
    let key = recipe.with_suffix(&version);
    let product = cache.find_or_build("kernel", &key, progress, |directory, progress| {
        let log = cache.fresh_log("kernel")?;
        let deb = apt::download(SOURCE_PACKAGE, &version, directory, &log, progress)?;
        compile(directory, &version, &deb, &log, progress).map_err(Error::from)
    })?;
    Ok(product.join("vmlinux"))
}

/// [`SOURCE_VERSION`] if the archive has it, else the newest that it has.
///
/// The lists of a fresh machine can be months old. So they are renewed before another revision is
/// taken.
fn offered_version(log: &Path, progress: &mut dyn Progress) -> Result<String, Error> {
    if apt::offers(SOURCE_PACKAGE, SOURCE_VERSION) {
        return Ok(SOURCE_VERSION.to_owned());
    }
    apt::update_lists(log, progress)?;
    if apt::offers(SOURCE_PACKAGE, SOURCE_VERSION) {
        return Ok(SOURCE_VERSION.to_owned());
    }
    let newest = apt::newest_version(SOURCE_PACKAGE).ok_or(KernelError::NoSource)?;
    progress.note(&format!(
        "{SOURCE_PACKAGE} {SOURCE_VERSION}, for which the patches were made, is not in the apt sources: taking {newest}"
    ));
    Ok(newest)
}

/// The key of all inputs but the source's version.
fn recipe_key() -> Key {
    let mut key =
        KeyBuilder::default().input("builder", BUILDER_VERSION.as_bytes()).input("config", CONFIG.as_bytes());
    for (name, patch) in PATCHES {
        key = key.input(name, patch.as_bytes());
    }
    key.key()
}

fn compile(
    directory: &Path,
    version: &str,
    deb: &Path,
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<(), KernelError> {
    let work = directory.join("work");
    let source = work.join(SOURCE_DIRECTORY);
    fs::create_dir(&work).map_err(file_failed("create", &work))?;
    unpack(&work, deb, log, progress)?;
    fs::remove_file(deb).map_err(file_failed("remove", deb))?;
    apply_patches(&source, version, log, progress)?;
    configure(&source, log, progress)?;
    make(&source, log, progress)?;

    progress.step("kernel: strip");
    let mut strip = Command::new("strip");
    strip.arg("--strip-all").arg("-o").arg(directory.join("vmlinux")).arg(source.join("vmlinux"));
    run::logged(strip, log, &mut |_| {}).map_err(step_failed("strip vmlinux"))?;
    // The symbols and the whole configuration are small and make a guest's oops readable.
    for (from, to) in [("System.map", "System.map"), (".config", "config")] {
        let from = source.join(from);
        fs::copy(&from, directory.join(to)).map_err(file_failed("keep", &from))?;
    }
    fs::remove_dir_all(&work).map_err(file_failed("remove", &work))
}

fn unpack(work: &Path, deb: &Path, log: &Path, progress: &mut dyn Progress) -> Result<(), KernelError> {
    progress.step("kernel: unpack the source");
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--extract").arg(deb).arg(work);
    run::logged(dpkg, log, &mut |_| {}).map_err(step_failed("unpack the source's package"))?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(work.join(SOURCE_TARBALL)).arg("--directory").arg(work);
    tar.args(["--checkpoint=20000", "--checkpoint-action=echo=%u"]);
    for path in UNUSED_SOURCE {
        tar.arg(format!("--exclude={SOURCE_DIRECTORY}/{path}"));
    }
    let mut records = 0;
    run::logged(tar, log, &mut |_| {
        records += 200;
        progress.advance(records, None, "MB");
    })
    .map_err(step_failed("unpack the source"))
}

fn apply_patches(
    source: &Path,
    version: &str,
    log: &Path,
    progress: &mut dyn Progress,
) -> Result<(), KernelError> {
    progress.step("kernel: apply patches");
    for (name, text) in PATCHES {
        let file = source.join(name);
        fs::write(&file, text).map_err(file_failed("write", &file))?;
        let mut patch = Command::new("patch");
        patch.current_dir(source).args(["-p1", "--forward", "--fuzz=0", "--input"]).arg(&file);
        run::logged(patch, log, &mut |_| {})
            .map_err(|source| KernelError::Patch { version: version.to_owned(), source })?;
    }
    Ok(())
}

fn configure(source: &Path, log: &Path, progress: &mut dyn Progress) -> Result<(), KernelError> {
    progress.step("kernel: configure");
    let wanted = source.join("patina.config");
    fs::write(&wanted, CONFIG).map_err(file_failed("write", &wanted))?;
    let mut make = make_command(source);
    make.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &wanted);
    run::logged(make, log, &mut |_| {}).map_err(step_failed("configure"))?;
    let result = source.join(".config");
    let result = fs::read_to_string(&result).map_err(file_failed("read", &result))?;
    let lines = dropped_lines(CONFIG, &result);
    if lines.is_empty() { Ok(()) } else { Err(KernelError::Dropped { lines }) }
}

/// The options of `wanted` that `result` does not have as asked for.
fn dropped_lines(wanted: &str, result: &str) -> Vec<String> {
    let is_option = |line: &&str| {
        line.starts_with("CONFIG_") || (line.starts_with("# CONFIG_") && line.ends_with(" is not set"))
    };
    let has = |line: &str| {
        // An option whose conditions are not met is not written at all, which is as good as off.
        let off = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"));
        match off {
            Some(name) => !result.lines().any(|have| have.starts_with(&format!("{name}="))),
            None => result.lines().any(|have| have == line),
        }
    };
    wanted.lines().filter(is_option).filter(|line| !has(line)).map(str::to_owned).collect()
}

fn make(source: &Path, log: &Path, progress: &mut dyn Progress) -> Result<(), KernelError> {
    progress.step("kernel: compile");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = make_command(source);
    make.arg(format!("-j{jobs}")).arg("vmlinux");
    let mut objects = 0;
    run::logged(make, log, &mut |line| {
        let line = line.trim_start();
        if ["CC ", "AS ", "AR ", "LD ", "HOSTCC "].iter().any(|tool| line.starts_with(tool)) {
            objects += 1;
            progress.advance(objects, Some(EXPECTED_OBJECTS), "objects");
        }
    })
    .map_err(step_failed("compile"))
}

/// `make` with what would otherwise differ from build to build held still.
fn make_command(source: &Path) -> Command {
    let mut make = Command::new("make");
    make.current_dir(source)
        .env_remove("MAKEFLAGS")
        .env_remove("ARCH")
        .env_remove("CROSS_COMPILE")
        .env("LC_ALL", "C.UTF-8")
        .env("KBUILD_BUILD_TIMESTAMP", "2025-01-01")
        .env("KBUILD_BUILD_USER", "patina")
        .env("KBUILD_BUILD_HOST", "patina");
    make
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_options_are_found() {
        let wanted = "# a comment\nCONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\nCONFIG_D=4\n";
        let result = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_D=5\n";
        assert_eq!(dropped_lines(wanted, result), ["# CONFIG_B is not set", "CONFIG_D=4"]);
        assert_eq!(dropped_lines(wanted, "CONFIG_A=y\nCONFIG_D=4\n"), [""; 0]);
    }

    #[test]
    fn the_configuration_keeps_what_the_design_needs() {
        for line in [
            "CONFIG_PVH=y",
            "CONFIG_X86_MPPARSE=y",
            "CONFIG_PATINA_GUEST=y",
            "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y",
            "CONFIG_LAZY_STRUCT_PAGE_INIT=y",
            "CONFIG_UNIX98_PTYS=y",
        ] {
            assert!(CONFIG.lines().any(|have| have == line), "{line}");
        }
    }
}
