//! The files that an emulated host boots from, as one cpio archive.

use super::plan::Plan;
use crate::setup::{BIN_DIR, GUEST_BIN_DIR, KERNEL, ROOTFS, Setup};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The first process of the host.
const INIT: &str = include_str!("init.sh");
/// The shell and tools of the host, one static program.
const BUSYBOX: &str = "/bin/busybox";
/// Folders of the host that file systems are mounted on, or that programs expect.
const FOLDERS: [&str; 7] = ["dev", "proc", "sys", "run", "tmp", "etc", "var/lib"];
/// Where programs and images are on the host.
const HOME: &str = "/patina";

/// What is put into the host besides the tests.
#[derive(Debug)]
pub struct Programs<'a> {
    /// vmm, vmmd, vmctl, scheduler, and the guest's image.
    pub setup: &'a Setup,
}

/// Why the files could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file cannot be read or written.
    #[error("{what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A program cannot be run, or failed.
    #[error("run {program}: {said}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// A library that a program needs is not on this machine.
    #[error("find the libraries of {}: {line}", program.display())]
    Library {
        /// The program.
        program: PathBuf,
        /// What ldd says.
        line: String,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InitramfsError {
    let path = path.to_owned();
    move |source| InitramfsError::File { what, path, source }
}

/// Makes `FOLDER/initramfs.cpio`, from a tree beside it that is made anew each time.
///
/// # Errors
/// See [`InitramfsError`].
pub fn make(
    plan: &Plan,
    programs: &Programs<'_>,
    modules: &[PathBuf],
    folder: &Path,
) -> Result<PathBuf, InitramfsError> {
    let tree = Tree::new(folder.join("initramfs"))?;
    for name in FOLDERS {
        tree.folder(name)?;
    }
    tree.copy(Path::new(BUSYBOX), "bin/busybox")?;
    tree.write("init", INIT, 0o755)?;
    for module in modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        tree.copy(module, &format!("modules/{name}"))?;
    }
    let setup = programs.setup;
    for name in ["vmm", "pager", "vmmd", "vmctl", "scheduler"] {
        tree.program(&setup.binary(name), &format!("patina/bin/{name}"))?;
    }
    tree.copy(&setup.kernel, "patina/vmlinux")?;
    tree.copy(&setup.rootfs, "patina/rootfs.erofs")?;
    for entry in fs::read_dir(&setup.guest_bin_dir).map_err(failed("list", &setup.guest_bin_dir))? {
        let path = entry.map_err(failed("list", &setup.guest_bin_dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Beside the programs lie cargo's own files.
        if path.is_file() && !name.contains('.') {
            tree.copy(&path, &format!("patina/guest/{name}"))?;
        }
    }
    for suite in &plan.suites {
        tree.program(&suite.program, &format!("patina/tests/{}", suite.name))?;
        tree.write(&format!("suites/{}", suite.name), &script(suite), 0o755)?;
    }
    let order: Vec<&str> = plan.suites.iter().map(|suite| suite.name).collect();
    tree.write("suites/order", &format!("{}\n", order.join("\n")), 0o644)?;
    let archive = folder.join("initramfs.cpio");
    tree.pack(&archive)?;
    Ok(archive)
}

/// What `/init` runs for one suite.
fn script(suite: &super::plan::Suite) -> String {
    let fixed = [
        (BIN_DIR, format!("{HOME}/bin")),
        (KERNEL, format!("{HOME}/vmlinux")),
        (ROOTFS, format!("{HOME}/rootfs.erofs")),
        (GUEST_BIN_DIR, format!("{HOME}/guest")),
        ("PATINA_TINY_VMM", format!("{HOME}/bin/vmm")),
    ];
    let exports: Vec<String> =
        fixed.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let arguments = suite.arguments.join(" ");
    format!("#!/bin/sh\n{}exec {HOME}/tests/{} {arguments}\n", exports.concat(), suite.name)
}

/// The files of the host, on this machine.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn new(root: PathBuf) -> Result<Self, InitramfsError> {
        if root.exists() {
            fs::remove_dir_all(&root).map_err(failed("remove", &root))?;
        }
        fs::create_dir_all(&root).map_err(failed("create", &root))?;
        Ok(Self { root })
    }

    fn folder(&self, name: &str) -> Result<(), InitramfsError> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(failed("create", &path))
    }

    /// Where `name` lies; the folder that it lies in is made.
    fn place(&self, name: &str) -> Result<PathBuf, InitramfsError> {
        let path = self.root.join(name.trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("create", parent))?;
        }
        Ok(path)
    }

    fn copy(&self, from: &Path, name: &str) -> Result<(), InitramfsError> {
        let to = self.place(name)?;
        fs::copy(from, &to).map(drop).map_err(failed("copy", from))
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), InitramfsError> {
        let path = self.place(name)?;
        fs::write(&path, text).map_err(failed("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", &path))
    }

    /// A program without its symbols, and the libraries that it is linked with.
    fn program(&self, from: &Path, name: &str) -> Result<(), InitramfsError> {
        let to = self.place(name)?;
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(&to).arg(from);
        output("strip", &mut strip)?;
        let mut ldd = Command::new("ldd");
        let told = ldd.arg(from).stdin(Stdio::null()).output();
        let told =
            told.map_err(|error| InitramfsError::Program { program: "ldd", said: error.to_string() })?;
        // For a static program ldd says so and fails.
        for library in libraries(from, &String::from_utf8_lossy(&told.stdout))? {
            let text = library.to_string_lossy();
            if !self.place(&text)?.exists() {
                self.copy(&library, &text)?;
            }
        }
        Ok(())
    }

    /// The whole tree as an archive for the kernel; the tree itself goes.
    fn pack(self, archive: &Path) -> Result<(), InitramfsError> {
        let script = "find . | cpio --create --format newc --quiet --owner 0:0";
        let file = fs::File::create(archive).map_err(failed("create", archive))?;
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(&self.root).stdout(file);
        output("cpio", &mut command)?;
        fs::remove_dir_all(&self.root).map_err(failed("remove", &self.root))
    }
}

fn output(program: &'static str, command: &mut Command) -> Result<Output, InitramfsError> {
    let said = |said| InitramfsError::Program { program, said };
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output();
    let output = output.map_err(|error| said(error.to_string()))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(said(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// The files in what ldd prints: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the dynamic
/// linker. Others come from the kernel.
fn libraries(program: &Path, ldd: &str) -> Result<BTreeSet<PathBuf>, InitramfsError> {
    let mut found = BTreeSet::new();
    for line in ldd.lines() {
        if line.contains("not found") {
            let line = line.trim().to_owned();
            return Err(InitramfsError::Library { program: program.to_owned(), line });
        }
        let file = line.split_once("=>").map_or(line, |(_, file)| file).trim();
        if let Some(path) = file.split(" (0x").next()
            && path.starts_with('/')
        {
            found.insert(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let found = libraries(Path::new("vmm"), ldd).unwrap();
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(found, BTreeSet::from(expected));
        assert!(libraries(Path::new("vmm"), "\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let error = libraries(Path::new("vmm"), "\tlibpng.so.9 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "find the libraries of vmm: libpng.so.9 => not found");
    }
}
