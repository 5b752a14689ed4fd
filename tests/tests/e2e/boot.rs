//! A real guest boots and gets its identity, and `gc` works in it.

use crate::{Outcome, Story, stage::Stage, tickets::memory_kib};

pub const STORIES: &[Story] = stories![
    a_guest_boots_and_is_ready,
    gc_vmid_prints_the_vmid,
    gc_my_ip_prints_the_address,
    gc_ismaster_is_true_on_the_master,
    gc_list_has_a_line_for_the_vm,
    gc_list_prints_json,
    the_guest_has_its_name_address_and_clock,
    the_root_takes_writes_that_stay_in_memory,
    python_runs_with_its_standard_library,
    a_guest_of_4_gib_boots_without_touching_its_ram,
];

fn a_guest_boots_and_is_ready(stage: &Stage) -> Outcome {
    let vm = stage.booted()?.inspect()?;
    assert_eq!((&vm["state"], vm["image"].as_str().unwrap_or_default()), (&"ready".into(), ""), "{vm}");
    assert!(vm["ready_after_us"].as_u64().is_some_and(|us| us > 0), "{vm}");
    assert!(vm["pid"].as_u64().is_some_and(|pid| pid > 0), "{vm}");
    Ok(())
}

fn gc_vmid_prints_the_vmid(stage: &Stage) -> Outcome {
    assert_eq!(stage.booted()?.call(&["gc", "vmid"])?, "0");
    Ok(())
}

fn gc_my_ip_prints_the_address(stage: &Stage) -> Outcome {
    let guest = stage.booted()?;
    let ip = guest.call(&["gc", "my-ip"])?;
    assert_eq!(ip, guest.field("ip")?);
    assert!(ip.starts_with("100."), "{ip} is not in 100.64.0.0/10");
    Ok(())
}

fn gc_ismaster_is_true_on_the_master(stage: &Stage) -> Outcome {
    let output = stage.booted()?.exec(&["gc", "ismaster"])?;
    assert_eq!((output.code, output.text().as_str()), (0, ""));
    Ok(())
}

fn gc_list_has_a_line_for_the_vm(stage: &Stage) -> Outcome {
    let guest = stage.booted()?;
    let text = guest.call(&["gc", "list"])?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let ip = guest.field("ip")?;
    assert!(matches!(lines.as_slice(), [line] if line[..3] == ["0", &ip, "ready"]), "{text}");
    Ok(())
}

fn gc_list_prints_json(stage: &Stage) -> Outcome {
    let guest = stage.booted()?;
    let members: serde_json::Value = serde_json::from_str(&guest.call(&["gc", "list", "--json"])?)?;
    assert_eq!((&members[0]["vmid"], &members[0]["state"]), (&0.into(), &"ready".into()));
    assert_eq!(members[0]["ip"], guest.field("ip")?);
    Ok(())
}

fn the_guest_has_its_name_address_and_clock(stage: &Stage) -> Outcome {
    let guest = stage.booted()?;
    assert_eq!(guest.call(&["hostname"])?, guest.name());
    let seen = guest.sh("cat /sys/class/net/eth0/address; date +%s")?;
    let (mac, clock) = seen.split_once('\n').unwrap_or_default();
    assert_eq!(mac, guest.field("mac")?);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    assert!(now.abs_diff(clock.trim().parse()?) < 30, "the guest's clock says {clock}, the host's {now}");
    Ok(())
}

fn the_root_takes_writes_that_stay_in_memory(stage: &Stage) -> Outcome {
    let guest = stage.booted()?;
    guest.sh("echo kept > /etc/patina-test; sync")?;
    assert_eq!(guest.call(&["cat", "/etc/patina-test"])?, "kept");
    // Nor does a guest reach the image itself: another VM with the same one is as it was built.
    let output = guest.exec(&["dd", "if=/dev/zero", "of=/dev/vda", "bs=512", "count=1", "conv=fsync"])?;
    assert_ne!(output.code, 0, "{output:?}");
    assert_eq!(stage.parent()?.exec(&["test", "-e", "/etc/patina-test"])?.code, 1);
    Ok(())
}

fn python_runs_with_its_standard_library(stage: &Stage) -> Outcome {
    let script = "import json, hashlib; print(json.dumps(hashlib.sha256(b'patina').hexdigest()[:8]))";
    assert_eq!(stage.booted()?.call(&["python3", "-c", script])?, "\"d94f56e9\"");
    Ok(())
}

/// A boot that prepares all RAM touches a 64th of it for its page descriptors alone; a bounce
/// buffer would be as much again. Both take long where kernels are emulated.
fn a_guest_of_4_gib_boots_without_touching_its_ram(stage: &Stage) -> Outcome {
    const MOST_KIB: u64 = 48 << 10;
    let host = stage.host()?;
    host.run("vast", &["--cold", "-m", "4G"])?;
    let total = host.vm("vast").sh("awk '/^MemTotal/ {print $2}' /proc/meminfo")?;
    let (own, shared) = memory_kib(host, "vast")?;
    host.vm("vast").kill()?;
    host.call(&["rm", "vast"])?;
    assert!(total.parse::<u64>()? > 3800 << 10, "{total} KiB");
    assert!(own + shared < MOST_KIB, "{own} KiB and {shared} KiB of 4 GiB");
    Ok(())
}
