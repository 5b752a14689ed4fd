//! The memory of generations: it is freed with its last user, and not before.

use crate::{
    Outcome, Story,
    family::{require, require_eq},
    stage::Stage,
};
use libtest_mimic::Failed;
use patina_tests::{host::Host, memfds::Memfds, vm::Vm};

pub const STORIES: &[Story] = stories![the_memory_of_a_generation_goes_with_its_last_user,];

/// What is written in a guest, so that its generation is seen to hold it.
const WRITTEN_BYTES: u64 = 4 << 20;

fn the_memory_of_a_generation_goes_with_its_last_user(stage: &Stage) -> Outcome {
    // Without warm VMs: what is there is of the VMs that are told of.
    let host = Host::start_with(stage.setup(), &["--warm", "0"])?;
    let told = in_turn(&host);
    host.stop()?;
    told
}

fn in_turn(host: &Host) -> Outcome {
    let count = |what: &str, count: usize| -> Result<u64, Failed> {
        let found = Memfds::of(host.dir())?;
        require(found.count() == count, format!("{what}: {count} memory files"), format!("{found:?}"))?;
        Ok(found.bytes())
    };
    // Nor with an image: it is a generation, too, and the files are counted.
    let parent = host.run("eve", &["--cold", "--memory", "128M"])?;
    count("a VM has its RAM", 1)?;
    let first = clone(host, &parent)?;
    count("its RAM is the first generation", 1)?;
    first.sh(&format!("head -c {WRITTEN_BYTES} /dev/zero > /dev/shm/written"))?;
    let second = clone(host, &first)?;
    let both = count("a clone's generation is what it wrote", 2)?;
    first.remove()?;
    count("a clone of it still runs from it", 2)?;
    let bytes = second.sh("wc -c < /dev/shm/written")?;
    require_eq("the bytes written", bytes, WRITTEN_BYTES.to_string())?;
    second.remove()?;
    let one = count("with the last one it is gone", 1)?;
    require(both >= one + WRITTEN_BYTES, format!("{WRITTEN_BYTES} bytes more than {one}"), both)?;

    let third = clone(host, &parent)?;
    count("another generation of the parent", 2)?;
    parent.remove()?;
    count("the parent ends before its clone", 2)?;
    require_eq("gc vmid in the clone", third.call(&["gc", "vmid"])?, "3")?;
    third.remove()?;
    count("the family has ended", 0)?;
    Ok(())
}

fn clone<'a>(host: &'a Host, parent: &Vm<'_>) -> Result<Vm<'a>, Failed> {
    let made = host.json(&["clone", parent.name(), "--timeout", "120"])?;
    Ok(host.vm(made["clones"][0]["name"].as_str().ok_or("no clone")?))
}
