//! Bad input: each is refused with a message that names it, and leaves nothing behind.

use crate::{
    Outcome, Story,
    stage::{SHARED, Stage, free_port},
};
use patina_tests::{host::Host, process};
use std::{fs, process::Command, time::Duration};

pub const STORIES: &[Story] = stories![
    a_missing_kernel,
    a_kernel_that_is_a_directory,
    a_kernel_that_is_no_kernel,
    an_elf_file_that_is_cut_short,
    an_empty_kernel,
    a_missing_root_file_system,
    memory_and_vcpus_out_of_range,
    invalid_names,
    a_name_in_use,
    a_port_in_use,
    a_command_line_that_is_too_long,
    a_socket_in_use,
    no_vmmd,
    no_kvm,
    no_rights,
];

/// `vmctl run` with these arguments is refused with `code`, its message has all `words`, and no VM
/// stays.
fn refused(host: &Host, arguments: &[&str], code: i32, words: &[&str]) -> Outcome {
    let output = host.vmctl(&[&["run", "--name", "refused"], arguments].concat())?;
    assert_eq!(output.code, code, "{arguments:?}: {output:?}");
    assert_eq!(output.text(), "", "{arguments:?}");
    for word in words {
        assert!(output.errors().contains(word), "{arguments:?}: {word:?} is not in: {}", output.errors());
    }
    assert_eq!(host.vmctl(&["inspect", "refused"])?.code, 3, "{arguments:?}: a VM stayed");
    Ok(())
}

fn a_missing_kernel(stage: &Stage) -> Outcome {
    refused(stage.host()?, &["--kernel", "/no/such/kernel"], 2, &["/no/such/kernel", "kernel"])
}

fn a_kernel_that_is_a_directory(stage: &Stage) -> Outcome {
    refused(stage.host()?, &["--kernel", "/usr"], 2, &["/usr"])
}

fn a_kernel_that_is_no_kernel(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    let file = host.dir().join("not-a-kernel");
    fs::write(&file, "This is a letter to my aunt, not a kernel.\n".repeat(1000))?;
    no_boot(host, &file.to_string_lossy())
}

fn an_elf_file_that_is_cut_short(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    let file = host.dir().join("short-kernel");
    let kernel = fs::read(&stage.setup().kernel)?;
    fs::write(&file, &kernel[..kernel.len().min(50_000)])?;
    no_boot(host, &file.to_string_lossy())
}

fn an_empty_kernel(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    let file = host.dir().join("empty-kernel");
    fs::write(&file, "")?;
    no_boot(host, &file.to_string_lossy())
}

/// A file that is there but does not boot: refused, or a VM that has ended with the reason. Either
/// way `vmctl run` fails and says that it is about the kernel.
fn no_boot(host: &Host, kernel: &str) -> Outcome {
    let output = host.vmctl(&["run", "--name", "refused", "--kernel", kernel])?;
    assert!(matches!(output.code, 2 | 5), "{output:?}");
    assert!(output.errors().contains("kernel"), "{output:?}");
    host.vmctl(&["rm", "-f", "refused"])?;
    Ok(())
}

fn a_missing_root_file_system(stage: &Stage) -> Outcome {
    refused(stage.host()?, &["--rootfs", "/no/such/rootfs"], 2, &["/no/such/rootfs", "rootfs"])
}

fn memory_and_vcpus_out_of_range(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    refused(host, &["--memory", "63M"], 2, &["memory_mib", "64"])?;
    refused(host, &["--memory", "65G"], 2, &["memory_mib", "65536"])?;
    refused(host, &["--vcpus", "17"], 2, &["vcpus", "16"])
}

fn invalid_names(stage: &Stage) -> Outcome {
    for name in ["../escape", "-rf", "a b", &"x".repeat(64)] {
        let output = stage.host()?.vmctl(&["run", &format!("--name={name}")])?;
        assert_eq!(output.code, 2, "{name}: {output:?}");
    }
    Ok(())
}

fn a_name_in_use(stage: &Stage) -> Outcome {
    stage.guest()?;
    let output = stage.host()?.vmctl(&["run", "--name", SHARED])?;
    assert_eq!(output.code, 4, "{output:?}");
    assert!(output.errors().contains(SHARED), "{output:?}");
    assert_eq!(stage.guest()?.call(&["gc", "vmid"])?, "0");
    Ok(())
}

fn a_port_in_use(stage: &Stage) -> Outcome {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let port = taken.local_addr()?.port().to_string();
    refused(stage.host()?, &["-p", &format!("{port}:80")], 4, &[&port])
}

fn a_command_line_that_is_too_long(stage: &Stage) -> Outcome {
    refused(stage.host()?, &["--cmdline", &"x".repeat(2000)], 2, &["cmdline", "1024"])
}

fn a_socket_in_use(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    let output = process::run(&mut host.vmmd_command(), b"", Duration::from_secs(20))?;
    assert_ne!(output.code, 0);
    let said = output.text() + &output.errors();
    assert!(said.contains("vmmd.sock") || said.contains(&*host.state_dir().to_string_lossy()), "{said}");
    assert_eq!(host.vmctl(&["ls"])?.code, 0, "the first vmmd serves on");
    Ok(())
}

fn no_vmmd(stage: &Stage) -> Outcome {
    let mut vmctl = Command::new(stage.setup().binary("vmctl"));
    vmctl.args(["--host", "unix:/no/such/vmmd.sock", "ls"]);
    let output = process::run(&mut vmctl, b"", Duration::from_secs(20))?;
    assert_eq!(output.code, 6);
    assert!(output.errors().contains("is it running? Start it with `vmmd --standalone`"), "{output:?}");
    Ok(())
}

/// Runs its arguments in a mount namespace whose /dev has no kvm.
const WITHOUT_KVM: &str = "set -e
dev=$(mktemp -d)
mount -t tmpfs none $dev
mkdir $dev/net
for node in null zero urandom net/tun; do touch $dev/$node; mount --bind /dev/$node $dev/$node; done
mount --move $dev /dev
rmdir $dev
exec \"$@\"";

fn no_kvm(stage: &Stage) -> Outcome {
    let host =
        Host::start_wrapped(stage.setup(), &["unshare", "--mount", "sh", "-c", WITHOUT_KVM, "without-kvm"])?;
    refused(&host, &[], 1, &["/dev/kvm"])?;
    assert_eq!(host.vmctl(&["version"])?.code, 0, "vmmd answers all the same");
    Ok(host.stop()?)
}

fn no_rights(stage: &Stage) -> Outcome {
    let home = tempfile::tempdir()?;
    let mut vmmd = Command::new("setpriv");
    vmmd.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(stage.setup().binary("vmmd"))
        .args(["--standalone", "--listen"])
        .arg(format!("unix:{}", home.path().join("vmmd.sock").display()))
        .arg("--state-dir")
        .arg(home.path().join("state"));
    let output = process::run(&mut vmmd, b"", Duration::from_secs(20))?;
    let said = output.text() + &output.errors();
    assert!(output.code != 0 && said.contains("ermission denied"), "{said}");
    assert!(free_port().is_ok() && !home.path().join("vmmd.sock").exists());
    Ok(())
}
