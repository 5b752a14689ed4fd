//! Real VMs with guests of a few instructions: how each ends, and that the `vmm` process says so.
//!
//! They need /dev/kvm and a tap, and show as ignored, with the reason, where these cannot be had.

#[macro_use]
mod named;
mod outer;
mod state;
mod tiny;

use libtest_mimic::{Arguments, Failed, Trial};
use patina_control::VERSION;
use patina_control::config::KvmKind;
use patina_control::end::EndKind;
use patina_control::messages::{Open, ToVmm};
use patina_daemon::kernel;
use patina_snapshot::container::Tag;
use patina_snapshot::cpuid::{Register, register};
use patina_snapshot::facts::HostFacts;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use tiny::code::{
    AVX, COUNT, DESCRIPTORS, ECHO, FOUR, HIGH, MTRR, PANIC, POWER_OFF, RANDOM, READ, READ_AND_WRITE,
    READ_PAGES, RESET, ROUNDS, SCATTER, SCATTERED, SPIN, TSC, UD2, has_feature,
};
use tiny::lazy::{Fate, FillingLayer, Pager};
use tiny::states::{is, needs, rewritten, vcpus_cpuid};
use tiny::{Guest, Outcome, Vmm, member};
use vmm::sys::kvm_state;
use vmm::vcpu::tsc::{TscStart, TscState};

type Test = fn() -> Result<(), Failed>;

fn main() -> ExitCode {
    let tests: [(&str, Test); 38] = named![
        power_off_is_recorded,
        a_panic_is_recorded_with_its_words,
        a_reset_is_recorded,
        a_triple_fault_is_recorded,
        an_instruction_that_kvm_lacks_is_named,
        popcnt_works_whatever_the_kvm,
        a_bzimage_boots_as_the_elf_inside,
        a_file_that_is_no_kernel_is_refused_with_its_first_bytes,
        a_running_vmm_has_no_rights_and_is_killed_by_word,
        a_generation_goes_on_in_clones_and_parent_each_for_itself,
        clones_start_where_the_kernel_does_not_tell_the_auxiliary_vector,
        the_tsc_of_a_clone_that_is_made_at_once_goes_on,
        a_generation_is_of_one_instant_and_its_parent_writes_elsewhere_at_once,
        a_vm_is_frozen_again_and_again,
        scattered_pages_are_copied_and_what_lies_between_is_not,
        an_instruction_with_two_exits_is_whole_in_parent_and_clones,
        a_clone_caches_memory_as_its_parent_does,
        ram_above_4_gib_is_each_ones_own,
        four_vcpus_go_on_in_clones,
        a_warm_vmm_that_is_killed_as_it_starts_takes_nobody_along,
        clones_of_clones_go_on_however_deep,
        an_invalid_generation_ends_a_warm_vm_with_the_reason,
        a_spare_vmm_is_told_who_its_vm_is_as_it_starts,
        a_state_of_another_host_or_release_is_refused_before_a_vcpu_runs,
        a_guest_is_offered_no_more_than_its_cpu_baseline,
        ram_and_vcpus_out_of_range_are_refused,
        a_vmm_refuses_a_newer_vmmd_and_serves_an_older_one,
        a_vmm_whose_log_takes_nothing_goes_on,
        a_freeze_gives_up_on_a_vcpu_that_waits_for_a_page_and_the_vm_goes_on,
        another_pager_is_attached_during_a_freeze_that_waits_for_a_page,
        a_vm_whose_vcpu_waits_for_a_page_is_killed_by_word,
        a_vm_is_frozen_again_and_again_while_its_memory_arrives,
        a_freeze_after_one_that_has_failed_copies_what_was_written_and_no_more,
        a_vm_whose_page_is_lost_ends_and_never_reads_another_content,
        a_device_that_waits_for_a_page_goes_on_when_it_comes,
        a_vm_whose_device_waits_for_a_page_is_killed_by_word,
        a_vm_whose_device_needs_a_lost_page_ends_and_its_guest_is_told_nothing,
        a_freeze_makes_no_content_of_a_lost_page,
    ];
    let missing = tiny::missing();
    let trials = tests
        .into_iter()
        .map(|(name, test)| match &missing {
            None => Trial::test(name, test),
            Some(reason) => Trial::test(format!("{name} [{reason}]"), test).with_ignored_flag(true),
        })
        .collect::<Vec<_>>();
    let states = state::trials(missing.as_ref());
    let trials = trials.into_iter().chain([on_hardware(&missing)]).chain(states).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What software KVM cannot show.
fn on_hardware(missing: &Option<String>) -> Trial {
    let tests: [(&str, Test); 1] = named![all_vcpus_of_a_clone_have_one_tsc_offset];
    let [(name, test)] = tests;
    match missing.clone().or_else(no_offsets) {
        None => Trial::test(name, test),
        Some(reason) => Trial::test(format!("{name} [{reason}]"), test).with_ignored_flag(true),
    }
}

fn expect(outcome: &Outcome, kind: EndKind, words: &str) -> Result<(), Failed> {
    if outcome.end.kind != kind || !outcome.end.reason.contains(words) {
        return Err(format!("expected {kind:?} with {words:?}, found {outcome:?}").into());
    }
    Ok(())
}

fn power_off_is_recorded() -> Result<(), Failed> {
    let outcome = Guest::code(POWER_OFF).run()?;
    expect(&outcome, EndKind::PoweredOff, "powered off")?;
    if outcome.exit != Some(0) {
        return Err(format!("an orderly end is no failure of the vmm: {outcome:?}").into());
    }
    Ok(())
}

fn a_panic_is_recorded_with_its_words() -> Result<(), Failed> {
    let mut code = Vec::new();
    for byte in b"Kernel panic - not syncing: on purpose\n" {
        code.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, *byte, 0xee]); // to the serial port
    }
    code.extend(PANIC);
    let outcome = Guest::code(&code).run()?;
    expect(&outcome, EndKind::Panicked, "panicked: on purpose")?;
    if !outcome.console.contains("on purpose\n") {
        return Err(format!("the last words are not in the log: {outcome:?}").into());
    }
    Ok(())
}

fn a_reset_is_recorded() -> Result<(), Failed> {
    expect(&Guest::code(RESET).run()?, EndKind::Rebooted, "reset")
}

fn a_triple_fault_is_recorded() -> Result<(), Failed> {
    expect(&Guest::code(UD2).run()?, EndKind::TripleFaulted, "triple fault")
}

fn an_instruction_that_kvm_lacks_is_named() -> Result<(), Failed> {
    let outcome = Guest::code(AVX).run()?;
    if vmm::vcpu::kind::detect() != KvmKind::Software {
        // The CPU runs it, and faults because the guest has not turned AVX on.
        return expect(&outcome, EndKind::TripleFaulted, "triple fault");
    }
    expect(
        &outcome,
        EndKind::VmmError,
        "`vaddps xmm0,xmm0,xmm0` (bytes [c5, f8, 58, c0]) at guest address 0x100000",
    )
}

fn popcnt_works_whatever_the_kvm() -> Result<(), Failed> {
    let mut code = vec![0x48, 0xc7, 0xc0, 0xf7, 0x00, 0x00, 0x00]; // mov rax, 0xf7
    code.extend([0xf3, 0x48, 0x0f, 0xb8, 0xd8]); // popcnt rbx, rax
    code.extend([0x48, 0x83, 0xfb, 0x07]); // cmp rbx, 7
    code.extend([0x75, POWER_OFF.len() as u8]); // jne to the reset
    code.extend(POWER_OFF);
    code.extend(RESET);
    expect(&Guest::code(&code).run()?, EndKind::PoweredOff, "")
}

fn a_bzimage_boots_as_the_elf_inside() -> Result<(), Failed> {
    expect(&Guest::code(POWER_OFF).into_bzimage()?.run()?, EndKind::PoweredOff, "")
}

fn a_file_that_is_no_kernel_is_refused_with_its_first_bytes() -> Result<(), Failed> {
    let outcome = Guest::file(b"#!/bin/sh\necho I am no kernel\n").run()?;
    expect(
        &outcome,
        EndKind::VmmError,
        "neither an x86-64 ELF file nor a bzImage (it begins with [23, 21, 2f",
    )?;
    if outcome.exit != Some(1) {
        return Err(format!("a VM that cannot start is a failure of the vmm: {outcome:?}").into());
    }
    Ok(())
}

/// A vmm that is older than its vmmd does not guess; one that is newer runs.
fn a_vmm_refuses_a_newer_vmmd_and_serves_an_older_one() -> Result<(), Failed> {
    let newer = Guest::code(POWER_OFF).version(VERSION + 1).run()?;
    expect(&newer, EndKind::VmmError, "install a vmm and a vmmd of the same release")?;
    expect(&Guest::code(POWER_OFF).version(0).run()?, EndKind::PoweredOff, "")
}

fn ram_and_vcpus_out_of_range_are_refused() -> Result<(), Failed> {
    let end = |guest: Guest| guest.run();
    expect(
        &end(Guest::code(POWER_OFF).memory_mib(63))?,
        EndKind::VmmError,
        "RAM in MiB is 63, and must be 64 to 65536",
    )?;
    expect(&end(Guest::code(POWER_OFF).memory_mib(65_537))?, EndKind::VmmError, "must be 64 to 65536")?;
    expect(&end(Guest::code(POWER_OFF).vcpus(0))?, EndKind::VmmError, "vCPUs is 0, and must be 1 to 16")?;
    expect(&end(Guest::code(POWER_OFF).vcpus(17))?, EndKind::VmmError, "must be 1 to 16")?;
    expect(&end(Guest::code(POWER_OFF).vcpus(16).memory_mib(65_536))?, EndKind::PoweredOff, "")
}

fn a_running_vmm_has_no_rights_and_is_killed_by_word() -> Result<(), Failed> {
    let vmm = Guest::code(SPIN).start()?;
    // The control connection is answered when the VM runs, and that is after the jail's door has
    // shut.
    let mut control = vmm.connect(&Open::Control)?;
    let expected =
        [("Uid", "65534\t65534\t65534\t65534"), ("Groups", ""), ("NoNewPrivs", "1"), ("Seccomp", "2")];
    for (key, value) in expected {
        let found = vmm.status(key)?;
        if found != value {
            return Err(format!("{key} is {found:?}, not {value:?}").into());
        }
    }
    tiny::send(&mut control, &ToVmm::Kill { reason: "enough".into() })?;
    expect(&vmm.wait()?, EndKind::Killed, "enough")
}

/// Each line that it does not understand is a line in its log.
fn a_vmm_whose_log_takes_nothing_goes_on() -> Result<(), Failed> {
    const LINES: usize = 20;
    let full = File::options().write(true).open("/dev/full")?;
    let unread = File::from(std::os::fd::OwnedFd::from(std::io::pipe()?.1));
    let kept = tempfile::tempfile()?;
    for log in [kept.try_clone()?, full, unread] {
        let vmm = Guest::code(ECHO).logging_to(log).start()?;
        let mut console = Typist::new(&vmm)?;
        console.expect("a", "a1")?;
        let mut control = vmm.connect(&Open::Control)?;
        control.get_mut().write_all("this is no order\n".repeat(LINES).as_bytes())?;
        console.expect("b", "b2")?;
        let generation = vmm.freeze()?;
        let clone = Guest::generation(&generation)?.start()?;
        Typist::new(&clone)?.expect("c", "c3")?;
        console.expect("c", "c3")?;
        // It is read after the lines before it.
        tiny::send(&mut control, &ToVmm::Kill { reason: "enough".into() })?;
        expect(&vmm.wait()?, EndKind::Killed, "enough")?;
    }
    let mut said = String::new();
    (&kept).rewind()?;
    (&kept).read_to_string(&mut said)?;
    match said.matches("invalid line").count() {
        LINES => Ok(()),
        count => Err(format!("{count} of {LINES} lines were told: {said}").into()),
    }
}

/// A console that the test types at.
struct Typist(BufReader<UnixStream>);

impl Typist {
    fn new(vmm: &Vmm) -> Result<Self, Failed> {
        Ok(Self(vmm.connect(&Open::Console)?))
    }

    fn expect(&mut self, key: &str, line: &str) -> Result<(), Failed> {
        self.0.get_mut().write_all(key.as_bytes())?;
        let mut found = String::new();
        self.0.read_line(&mut found)?;
        if found.trim_end() != line {
            return Err(format!("after {key:?}: {found:?}, not {line:?}").into());
        }
        Ok(())
    }
}

fn a_generation_goes_on_in_clones_and_parent_each_for_itself() -> Result<(), Failed> {
    let parent = Guest::code(ECHO).vcpus(2).start()?;
    let mut at_parent = Typist::new(&parent)?;
    at_parent.expect("x", "x1")?;
    let generation = parent.freeze()?;
    at_parent.expect("p", "p2")?;

    let first = Guest::generation(&generation)?.vcpus(2).start()?;
    let second = Guest::generation(&generation)?.vcpus(2).start()?;
    let (mut at_first, mut at_second) = (Typist::new(&first)?, Typist::new(&second)?);
    at_first.expect("c", "c2")?;
    at_second.expect("d", "d2")?;
    at_first.expect("e", "e3")?;
    at_parent.expect("q", "q3")?;
    at_second.expect("f", "f3")?;

    unchanged(&generation, 0, 1)?;
    end_all([parent, first, second])
}

fn clones_start_where_the_kernel_does_not_tell_the_auxiliary_vector() -> Result<(), Failed> {
    let parent = Guest::code(ECHO).on_old_kernel().start()?;
    let mut at_parent = Typist::new(&parent)?;
    at_parent.expect("x", "x1")?;
    let first = Guest::generation(&parent.freeze()?)?.on_old_kernel().start()?;
    Typist::new(&first)?.expect("c", "c2")?;
    let second = Guest::generation(&first.freeze()?)?.on_old_kernel().start()?;
    Typist::new(&second)?.expect("d", "d3")?;
    at_parent.expect("p", "p2")?;
    end_all([parent, first, second])
}

fn the_tsc_of_a_clone_that_is_made_at_once_goes_on() -> Result<(), Failed> {
    // Warm VMs are made within a second of their master: see `vcpu::tsc`.
    let warm = [Guest::warm().vcpus(2).start()?, Guest::warm().vcpus(2).start()?];
    let parent = Guest::code(TSC).vcpus(2).start()?;
    let late = Guest::warm().vcpus(2).start()?;
    let mut at_parent = Typist::new(&parent)?;
    at_parent.expect("a", "+")?;
    let generation = parent.freeze()?;
    for clone in warm.iter().chain([&late]) {
        clone.give(&generation)?;
        let mut at_clone = Typist::new(clone)?;
        at_clone.expect("b", "+")?;
        at_clone.expect("c", "+")?;
    }
    at_parent.expect("b", "+")?;
    let grandchild = Guest::generation(&late.freeze()?)?.vcpus(2).start()?;
    Typist::new(&grandchild)?.expect("d", "+")?;
    end_all(warm.into_iter().chain([parent, late, grandchild]))
}

/// What this host's KVM lacks to set TSCs by their offsets.
fn no_offsets() -> Option<String> {
    let probe = || {
        let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
        vm.create_irq_chip()?;
        let vcpu = vm.create_vcpu(0)?;
        kvm_state::set_tsc_offset(&vcpu, 77)?;
        kvm_state::tsc_offset(&vcpu)
    };
    match probe() {
        Ok(77) => None,
        Ok(_) => Some("this KVM's guests have the host's TSC".into()),
        Err(error) => Some(format!("this KVM takes no TSC offset: {error}")),
    }
}

fn all_vcpus_of_a_clone_have_one_tsc_offset() -> Result<(), Failed> {
    let make = |vcpus: u64| -> Result<_, Failed> {
        let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
        vm.create_irq_chip()?;
        let vcpus = (0..vcpus).map(|index| vm.create_vcpu(index)).collect::<Result<Vec<_>, _>>()?;
        Ok((vm, vcpus))
    };
    let (_parent, parents) = make(3)?;
    let own = kvm_state::tsc_offset(&parents[0])?;
    // As if its guest had set the TSC of the last one.
    for (vcpu, more) in parents.iter().zip([0, 0, 77]) {
        kvm_state::set_tsc_offset(vcpu, own.wrapping_add(more))?;
    }
    let saved: Vec<_> = parents.iter().map(TscState::save).collect();
    let (_clone, clones) = make(3)?;
    let start = TscStart::new(saved[0], None);
    for (vcpu, saved) in clones.iter().zip(&saved) {
        if !start.set(vcpu, *saved)? {
            return Err("the offset was not set".into());
        }
    }
    let offsets = clones.iter().map(kvm_state::tsc_offset).collect::<Result<Vec<_>, _>>()?;
    // The clone's TSC stands where its parent's stood a moment ago, so it is behind the parent's.
    if offsets[1] != offsets[0] || offsets[2] != offsets[0].wrapping_add(77) || offsets[0] == own {
        return Err(format!("{offsets:?}, the parent's {own}").into());
    }
    Ok(())
}

/// A layer of a generation cannot be written to, and has this count.
fn unchanged(generation: &tiny::Generation, layer: usize, expected: u8) -> Result<(), Failed> {
    let ram = File::from(generation.layers[layer].try_clone()?);
    if ram.write_at(&[9], COUNT).is_ok() {
        return Err("the generation can be written to".into());
    }
    let mut count = [0];
    ram.read_exact_at(&mut count, COUNT)?;
    if count != [expected] {
        return Err(format!("the generation has changed: {count:?}, not {expected}").into());
    }
    Ok(())
}

fn end_all(vmms: impl IntoIterator<Item = Vmm>) -> Result<(), Failed> {
    for vmm in vmms {
        let mut control = vmm.connect(&Open::Control)?;
        tiny::send(&mut control, &ToVmm::Kill { reason: "enough".into() })?;
        expect(&vmm.wait()?, EndKind::Killed, "enough")?;
    }
    Ok(())
}

/// The bytes of [`ROUNDS`] in a layer.
fn rounds(layer: &std::os::fd::OwnedFd) -> Result<Vec<u8>, Failed> {
    let ram = File::from(layer.try_clone()?);
    let byte = |page| -> Result<u8, Failed> {
        let mut byte = [0];
        ram.read_exact_at(&mut byte, (4 << 20) + page * 4096)?;
        Ok(byte[0])
    };
    (0..SCATTERED).map(byte).collect()
}

fn a_generation_is_of_one_instant_and_its_parent_writes_elsewhere_at_once() -> Result<(), Failed> {
    let parent = Guest::code(ROUNDS).start()?;
    let mut console = parent.connect(&Open::Console)?;
    let mut line = String::new();
    for _ in 0..3 {
        console.read_line(&mut line)?;
    }
    let first = parent.freeze()?;
    let frozen = rounds(&first.layers[0])?;
    // Up to some page the guest was in this round, and behind it in the one before.
    let steps: Vec<u8> = frozen.windows(2).map(|pair| pair[0].wrapping_sub(pair[1])).collect();
    if steps.iter().any(|step| *step > 1) || steps.iter().filter(|step| **step == 1).count() > 1 {
        return Err(format!("the generation is of no one instant: {frozen:?}").into());
    }
    // Every page is written again, and none of it comes into the generation.
    let mut written = 0;
    while written < 4 * SCATTERED {
        written += parent.freeze()?.frozen.copied_pages;
    }
    if rounds(&first.layers[0])? != frozen {
        return Err("the generation has changed".into());
    }
    end_all([parent])
}

fn a_vm_is_frozen_again_and_again() -> Result<(), Failed> {
    let parent = Guest::code(ECHO).start()?;
    let mut at_parent = Typist::new(&parent)?;
    at_parent.expect("a", "a1")?;
    let first = parent.freeze()?;
    at_parent.expect("b", "b2")?;
    let second = parent.freeze()?;
    at_parent.expect("c", "c3")?;
    let third = parent.freeze()?;
    let sizes = [&first, &second, &third].map(|generation| generation.layers.len());
    // Where nothing notes what is written, the third has all private pages, so that nothing of the
    // second is seen.
    let noted = kernel::notes_writes(&kernel::release()?);
    if sizes != [1, 2, if noted { 3 } else { 2 }]
        || first.frozen.copied_pages != 0
        || second.frozen.copied_pages == 0
    {
        return Err(format!("{sizes:?} layers, {:?}, {:?}", first.frozen, second.frozen).into());
    }
    let mut clones = Vec::new();
    for (generation, line) in [(&third, "d4"), (&first, "d2"), (&second, "d3")] {
        let clone = Guest::generation(generation)?.start()?;
        Typist::new(&clone)?.expect("d", line)?;
        clones.push(clone);
    }
    at_parent.expect("e", "e4")?;
    for (generation, layer, count) in [(&first, 0, 1), (&second, 1, 2), (&third, 0, 1)] {
        unchanged(generation, layer, count)?;
    }
    let of_third = if noted { &[(1, 2), (2, 3)][..] } else { &[(1, 3)] };
    for (layer, count) in of_third {
        unchanged(&third, *layer, *count)?;
    }
    end_all(clones.into_iter().chain([parent]))
}

fn scattered_pages_are_copied_and_what_lies_between_is_not() -> Result<(), Failed> {
    let parent = Guest::code(SCATTER).memory_mib(1024).start()?;
    let mut at_parent = Typist::new(&parent)?;
    at_parent.expect("a", "1")?;
    let first = parent.freeze()?;
    let held = |layer: &std::os::fd::OwnedFd| -> Result<u64, Failed> {
        Ok(File::from(layer.try_clone()?).metadata()?.blocks() * 512 / 4096)
    };
    let held_first = held(&first.layers[0])?;
    // What is written while the first of these runs is found by all private pages, later by what
    // was written since.
    for line in ["2", "3", "4"] {
        at_parent.expect("b", line)?;
        let next = parent.freeze()?;
        let copied = next.frozen.copied_pages;
        let (held_next, held_now) = (held(next.layers.last().ok_or("no layer")?)?, held(&first.layers[0])?);
        if !(SCATTERED..SCATTERED + 100).contains(&copied) || held_next > copied || held_now != held_first {
            return Err(format!("{copied} pages copied, {held_next} held, {held_first} to {held_now}").into());
        }
        let clone = Guest::generation(&next)?.memory_mib(1024).start()?;
        let then = (line.as_bytes()[0] + 1) as char;
        Typist::new(&clone)?.expect("c", &then.to_string())?;
        end_all([clone])?;
    }
    end_all([parent])
}

fn an_instruction_with_two_exits_is_whole_in_parent_and_clones() -> Result<(), Failed> {
    let parent = Guest::code(READ_AND_WRITE).start()?;
    let mut vmms = Vec::new();
    for round in 0..60 {
        let generation = parent.freeze()?;
        if round % 20 == 0 {
            vmms.push(Guest::generation(&generation)?.start()?);
        }
    }
    vmms.push(parent);
    for vmm in vmms {
        let mut control = vmm.connect(&Open::Control)?;
        tiny::send(&mut control, &ToVmm::Kill { reason: "enough".into() })?;
        let outcome = vmm.wait()?;
        if !outcome.console.is_empty() || outcome.end.kind != EndKind::Killed {
            return Err(format!("a write was lost: {outcome:?}").into());
        }
    }
    Ok(())
}

fn a_clone_caches_memory_as_its_parent_does() -> Result<(), Failed> {
    let parent = Guest::code(MTRR).start()?;
    Typist::new(&parent)?.expect("a", "68")?;
    let clone = Guest::generation(&parent.freeze()?)?.start()?;
    Typist::new(&clone)?.expect("b", "68")?;
    let grandchild = Guest::generation(&clone.freeze()?)?.start()?;
    Typist::new(&grandchild)?.expect("c", "68")?;
    end_all([parent, clone, grandchild])
}

fn ram_above_4_gib_is_each_ones_own() -> Result<(), Failed> {
    // 28 MiB of it above the hole for devices.
    const RAM_MIB: u32 = 3100;
    let parent = Guest::code(HIGH).memory_mib(RAM_MIB).start()?;
    let mut at_parent = Typist::new(&parent)?;
    at_parent.expect("a", "1")?;
    let first = parent.freeze()?;
    at_parent.expect("a", "2")?;
    let second = parent.freeze()?;
    at_parent.expect("a", "3")?;
    let third = parent.freeze()?;
    let mut vmms = vec![];
    for (generation, line) in [(&third, "4"), (&first, "2"), (&second, "3")] {
        let clone = Guest::generation(generation)?.memory_mib(RAM_MIB).start()?;
        Typist::new(&clone)?.expect("b", line)?;
        let grandchild = Guest::generation(&clone.freeze()?)?.memory_mib(RAM_MIB).start()?;
        Typist::new(&grandchild)?.expect("c", &(line.parse::<u8>()? + 1).to_string())?;
        vmms.extend([clone, grandchild]);
    }
    at_parent.expect("a", "4")?;
    end_all(vmms.into_iter().chain([parent]))
}

fn four_vcpus_go_on_in_clones() -> Result<(), Failed> {
    let parent = Guest::code(FOUR).vcpus(4).start()?;
    let mut at_parent = Typist::new(&parent)?;
    at_parent.expect("a", "y")?;
    let first = parent.freeze()?;
    at_parent.expect("b", "y")?;
    let second = parent.freeze()?;
    at_parent.expect("c", "y")?;
    for generation in [&first, &second] {
        let clone = Guest::generation(generation)?.vcpus(4).start()?;
        Typist::new(&clone)?.expect("d", "y")?;
        let grandchild = Guest::generation(&clone.freeze()?)?.vcpus(4).start()?;
        Typist::new(&grandchild)?.expect("e", "y")?;
        end_all([clone, grandchild])?;
    }
    end_all([parent])
}

fn a_warm_vmm_that_is_killed_as_it_starts_takes_nobody_along() -> Result<(), Failed> {
    let parent = Guest::code(ECHO).start()?;
    let mut at_parent = Typist::new(&parent)?;
    at_parent.expect("x", "x1")?;
    let generation = parent.freeze()?;
    for round in 0..10u8 {
        let warm = Guest::warm().start()?;
        // It is somewhere between the two, another place each time.
        warm.give_and_kill(&generation)?;
        let clone = Guest::generation(&generation)?.start()?;
        Typist::new(&clone)?.expect("c", "c2")?;
        end_all([clone])?;
        at_parent.expect("p", &format!("p{}", (b'0' + 2 + round) as char))?;
    }
    unchanged(&generation, 0, 1)?;
    end_all([parent])
}

fn clones_of_clones_go_on_however_deep() -> Result<(), Failed> {
    let mut vmms = vec![Guest::code(ECHO).start()?];
    let mut most = 0;
    for depth in 1..=20u8 {
        let vmm = vmms.last().ok_or("none")?;
        let count = char::from(b'0' + depth);
        Typist::new(vmm)?.expect("x", &format!("x{count}"))?;
        let generation = vmm.freeze()?;
        most = most.max(generation.layers.len());
        vmms.push(Guest::generation(&generation)?.start()?);
    }
    if !(5..=10).contains(&most) {
        return Err(format!("chains of up to {most} layers").into());
    }
    Typist::new(&vmms[0])?.expect("y", "y2")?;
    Typist::new(&vmms[7])?.expect("y", "y9")?;
    end_all(vmms)
}

fn an_invalid_generation_ends_a_warm_vm_with_the_reason() -> Result<(), Failed> {
    let parent = Guest::code(ECHO).start()?;
    Typist::new(&parent)?.expect("a", "a1")?;
    let good = parent.freeze()?;
    let garbage = |bytes: &[u8]| -> Result<std::os::fd::OwnedFd, Failed> {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        Ok(file.into())
    };
    let short = tempfile::tempfile()?;
    short.set_len(4096)?;
    let bad = [
        (
            tiny::Generation { state: garbage(&[0xff; 100])?, ..good.open()? },
            "it does not begin as a state does",
        ),
        (tiny::Generation { layers: vec![short.into()], ..good.open()? }, "layer 0 has 4096 bytes"),
        (tiny::Generation { layers: Vec::new(), ..good.open()? }, "0 layers"),
    ];
    for (generation, reason) in bad {
        let warm = Guest::warm().start()?;
        let error = warm.give(&generation).err().ok_or("it started")?;
        if !error.message().is_some_and(|message| message.contains(reason)) {
            return Err(format!("{:?}, not {reason}", error.message()).into());
        }
        expect(&warm.wait()?, EndKind::VmmError, reason)?;
    }
    let warm = Guest::warm().vcpus(2).start()?;
    let error = warm.give(&good).err().ok_or("it started")?;
    if !error.message().is_some_and(|message| message.contains("1 vCPUs and 64 MiB, the VM 2 and 64 MiB")) {
        return Err(format!("{:?}", error.message()).into());
    }
    drop(warm.wait()?);
    let warm = Guest::warm().start()?;
    if warm.freeze().is_ok() {
        return Err("a warm VM was frozen".into());
    }
    warm.give(&good)?;
    if warm.give(&good).is_ok() {
        return Err("a VM was started twice".into());
    }
    Typist::new(&warm)?.expect("b", "b2")?;
    end_all([warm, parent])
}

fn a_spare_vmm_is_told_who_its_vm_is_as_it_starts() -> Result<(), Failed> {
    let parent = Guest::code(ECHO).start()?;
    Typist::new(&parent)?.expect("a", "a1")?;
    let generation = parent.freeze()?;
    let spare = Guest::spare().start()?;
    let mut no_mac = member();
    no_mac.identity.mac = "02:00".into();
    let bad = [(None, "does not say who its VM is"), (Some(no_mac), "\"02:00\" is not a MAC address")];
    for (member, reason) in bad {
        let error = spare.give_to(&generation, member).err().ok_or("it started")?;
        if !error.message().is_some_and(|message| message.contains(reason)) {
            return Err(format!("{:?}, not {reason}", error.message()).into());
        }
    }
    // It waits on after what was no use to it.
    spare.give_to(&generation, Some(member()))?;
    Typist::new(&spare)?.expect("b", "b2")?;

    let warm = Guest::warm().start()?;
    let error = warm.give_to(&generation, Some(member())).err().ok_or("it started")?;
    if !error.message().is_some_and(|message| message.contains("it has an identity already")) {
        return Err(format!("{:?}", error.message()).into());
    }
    warm.give(&generation)?;
    Typist::new(&warm)?.expect("c", "c2")?;
    end_all([spare, warm, parent])
}

/// The guest counts what it is asked, so one that had run would have answered.
fn a_state_of_another_host_or_release_is_refused_before_a_vcpu_runs() -> Result<(), Failed> {
    let parent = Guest::code(ECHO).start()?;
    Typist::new(&parent)?.expect("a", "a1")?;
    let good = parent.freeze()?;
    let other = |kind| if kind == KvmKind::Vmx { KvmKind::Svm } else { KvmKind::Vmx };
    let bad = [
        (rewritten(&good.state, |needs| needs.vendor = *b"OtherVendor!", |_| ())?, "OtherVendor! family"),
        (rewritten(&good.state, |needs| needs.kvm_kind = other(needs.kvm_kind), |_| ())?, "use a host with"),
        (rewritten(&good.state, |needs| needs.xcr0 |= 1 << 62, |_| ())?, "(XCR0)"),
        (rewritten(&good.state, |needs| needs.page_bytes = 65_536, |_| ())?, "pages of 65536 bytes"),
        (
            rewritten(&good.state, |_| (), |section| section.version += u16::from(is(section, b"VCPU")))?,
            "section VCPU has version 2, and this release reads version 1",
        ),
        (
            rewritten(
                &good.state,
                |_| (),
                |section| {
                    if is(section, b"PIT ") {
                        section.tag = Tag(*b"HPET");
                    }
                },
            )?,
            "does not know its section HPET",
        ),
    ];
    for (state, reason) in bad {
        let warm = Guest::warm().start()?;
        let error = warm.give(&tiny::Generation { state, ..good.open()? }).err().ok_or("it started")?;
        if !error.message().is_some_and(|message| message.contains(reason)) {
            return Err(format!("{:?}, not {reason}", error.message()).into());
        }
        expect(&warm.wait()?, EndKind::VmmError, reason)?;
    }
    // What is only shown may differ.
    let note = rewritten(&good.state, |needs| needs.kernel = "9.9".into(), |_| ())?;
    let clone = Guest::generation(&tiny::Generation { state: note, ..good.open()? })?.start()?;
    Typist::new(&clone)?.expect("b", "b2")?;
    Typist::new(&parent)?.expect("c", "c2")?;
    end_all([clone, parent])
}

/// Software KVM does not intercept CPUID, and gives each vCPU the host's: what is offered there
/// shows in the facts only, and in the command line of a Linux kernel.
fn a_guest_is_offered_no_more_than_its_cpu_baseline() -> Result<(), Failed> {
    let all = Guest::code(ECHO).start()?;
    let all = needs(&all.freeze()?.state)?;
    let ebx = |facts: &HostFacts| register(&facts.cpuid, 7, 0, Register::Ebx);
    let bit = (0..32).find(|bit| ebx(&all) >> bit & 1 != 0).ok_or("the CPU has no feature of leaf 7")?;
    let mut baseline = all.clone();
    let leaf = baseline.cpuid.iter_mut().find(|entry| (entry.function, entry.index) == (7, 0));
    leaf.ok_or("no leaf 7")?.ebx &= !(1 << bit);

    let parent = Guest::code(ECHO).vcpus(2).cpu_baseline(&baseline).start()?;
    Typist::new(&parent)?.expect("a", "a1")?;
    let generation = parent.freeze()?;
    // The clone's vmm knows no baseline: the state says what its guest was offered.
    let clone = Guest::generation(&generation)?.vcpus(2).start()?;
    Typist::new(&clone)?.expect("b", "b2")?;
    for state in [&generation.state, &clone.freeze()?.state] {
        let facts = needs(state)?;
        if ebx(&facts) != ebx(&baseline) || all.check(&facts).is_err() || baseline.check(&facts).is_err() {
            return Err(format!("{:#x} is offered, not {:#x}", ebx(&facts), ebx(&baseline)).into());
        }
        // As KVM has taken it, for each vCPU.
        let taken = vcpus_cpuid(state)?;
        let taken: Vec<u32> = taken.iter().map(|cpuid| register(cpuid, 7, 0, Register::Ebx)).collect();
        if all.kvm_kind != KvmKind::Software && taken != [ebx(&baseline); 2] {
            return Err(format!("the vCPUs have {taken:#x?}, not {:#x}", ebx(&baseline)).into());
        }
    }
    end_all([clone, parent])?;

    let sees = |guest: Guest| guest.run().map(|outcome| outcome.console);
    let code = [&has_feature(u8::try_from(bit)?)[..], POWER_OFF].concat();
    let masked = if all.kvm_kind == KvmKind::Software { "1" } else { "0" };
    let seen = [sees(Guest::code(&code))?, sees(Guest::code(&code).cpu_baseline(&baseline))?];
    if seen != ["1", masked] {
        return Err(format!("guests without and with the baseline see {seen:?}").into());
    }
    let unreadable = Guest::code(POWER_OFF).cpu_baseline_bytes(vec![1, 2, 3]).run()?;
    expect(&unreadable, EndKind::VmmError, "read the CPU baseline: it ends at byte 3")
}

/// Where [`ECHO`] writes at its third byte.
const THIRD: u64 = COUNT + 3 * 0x1_0000;

/// A clone of an echoing guest whose memory arrives page by page, but for the one at [`THIRD`]:
/// its vCPU waits for that one.
fn clone_that_waits() -> Result<(Vmm, Typist, FillingLayer, Pager), Failed> {
    clone_that_waits_after(|_| Ok(()))
}

/// The same, after `first` was done with it.
fn clone_that_waits_after(
    first: impl Fn(&Vmm) -> Result<(), Failed>,
) -> Result<(Vmm, Typist, FillingLayer, Pager), Failed> {
    let parent = Guest::code(ECHO).start()?;
    Typist::new(&parent)?.expect("x", "x1")?;
    let generation = parent.freeze()?;
    end_all([parent])?;
    let layer = FillingLayer::of(&generation)?;
    let clone = Guest::warm().start()?;
    let fate = |offset| if offset == THIRD { Fate::HeldBack } else { Fate::Served };
    let pager = clone.give_lazily(&generation, &layer, fate)?;
    let mut at_clone = Typist::new(&clone)?;
    at_clone.expect("c", "c2")?;
    first(&clone)?;
    at_clone.0.get_mut().write_all(b"d")?;
    if pager.waited()? != THIRD {
        return Err("the guest waits for another page".into());
    }
    Ok((clone, at_clone, layer, pager))
}

fn a_freeze_gives_up_on_a_vcpu_that_waits_for_a_page_and_the_vm_goes_on() -> Result<(), Failed> {
    let (clone, mut at_clone, layer, pager) = clone_that_waits()?;
    for _ in 0..2 {
        let refused = clone.freeze().err().ok_or("it is frozen without a page that it needs")?;
        let words = refused.message().unwrap_or_default();
        if !words.contains("pause vCPU 0") || !words.contains("memory that has not arrived") {
            return Err(words.to_owned().into());
        }
    }
    // The next pager has the page, and nothing is lost: neither the write that waited nor those
    // before.
    drop(pager);
    let _pager = clone.give_pager(&layer, |_| Fate::Served)?;
    at_clone.expect("", "d3")?;
    let generation = clone.freeze()?;
    at_clone.expect("e", "e4")?;
    let grandchild = Guest::warm().start()?;
    let _its_pager = grandchild.give_lazily(&generation, &layer, |_| Fate::Served)?;
    Typist::new(&grandchild)?.expect("f", "f4")?;
    end_all([clone, grandchild])
}

fn another_pager_is_attached_during_a_freeze_that_waits_for_a_page() -> Result<(), Failed> {
    let (clone, mut at_clone, layer, pager) = clone_that_waits()?;
    drop(pager);
    std::thread::scope(|scope| {
        let freezing = scope.spawn(|| clone.freeze().map_err(|error| error.message().map(str::to_owned)));
        let _pager = clone.give_pager(&layer, |_| Fate::Served)?;
        at_clone.expect("", "d3")?;
        freezing.join().map_err(|_| "the freeze panicked")?.map_err(|words| words.unwrap_or_default())?;
        at_clone.expect("e", "e4")
    })?;
    end_all([clone])
}

fn a_vm_whose_vcpu_waits_for_a_page_is_killed_by_word() -> Result<(), Failed> {
    let (clone, _at_clone, _layer, _pager) = clone_that_waits()?;
    // Who wants to reach the guest is answered, too.
    let refused = clone.ask(&Open::Dial { port: 1 }, &[]).err().ok_or("a guest without a driver answers")?;
    if !refused.message().is_some_and(|words| words.contains("its vsock driver is not ready")) {
        return Err(refused);
    }
    end_all([clone])
}

/// A freeze may copy so many pages besides those that the guest's program has written: its page
/// tables.
const FEW_PAGES: u64 = 16;

fn copied_few(generation: &tiny::Generation) -> Result<(), Failed> {
    match generation.frozen.copied_pages {
        1..FEW_PAGES => Ok(()),
        pages => Err(format!("{pages} pages were copied").into()),
    }
}

fn a_vm_is_frozen_again_and_again_while_its_memory_arrives() -> Result<(), Failed> {
    const _: () = assert!(READ_PAGES > 4 * FEW_PAGES);
    let (generation, layer) = frozen_after_one(READ)?;
    let clone = Guest::warm().start()?;
    let pager = clone.give_lazily(&generation, &layer, |_| Fate::Served)?;
    let mut at_clone = Typist::new(&clone)?;
    // It reads pages of zeros, which the pager maps and which are no pages that it wrote.
    at_clone.expect("b", "2")?;
    let served = pager.served();
    if (served as u64) < READ_PAGES {
        return Err(format!("only {served} pages were served").into());
    }
    let first = clone.freeze()?;
    copied_few(&first)?;
    at_clone.expect("c", "3")?;
    let second = clone.freeze()?;
    copied_few(&second)?;
    if pager.served() > served + FEW_PAGES as usize {
        return Err(format!("the freezes demand {} pages", pager.served() - served).into());
    }
    // The layer becomes complete between two freezes: the VM needs its pager no longer then.
    pager.complete()?;
    at_clone.expect("d", "4")?;
    let third = clone.freeze()?;
    copied_few(&third)?;
    pager.left()?;
    drop(pager);
    at_clone.expect("e", "5")?;
    let fourth = clone.freeze()?;
    copied_few(&fourth)?;
    // All of them hold what was there at their time, whether their layer is complete or not.
    for (generation, digit) in [(first, "3"), (second, "4"), (third, "5"), (fourth, "6")] {
        let grandchild = Guest::warm().start()?;
        let empty = FillingLayer::of_content(&layer)?;
        let _pager = grandchild.give_lazily(&generation, &empty, |_| Fate::Served)?;
        Typist::new(&grandchild)?.expect("f", digit)?;
        end_all([grandchild])?;
    }
    end_all([clone])
}

fn a_freeze_after_one_that_has_failed_copies_what_was_written_and_no_more() -> Result<(), Failed> {
    let (clone, mut at_clone, layer, pager) = clone_that_waits_after(|clone| copied_few(&clone.freeze()?))?;
    clone.freeze().err().ok_or("it is frozen without a page that it needs")?;
    drop(pager);
    let pager = clone.give_pager(&layer, |_| Fate::Served)?;
    at_clone.expect("", "d3")?;
    let served = pager.served();
    // Neither pages that have not arrived nor those that nobody wrote.
    let generation = clone.freeze()?;
    copied_few(&generation)?;
    if pager.served() > served + FEW_PAGES as usize {
        return Err(format!("the freeze demands {} pages", pager.served() - served).into());
    }
    at_clone.expect("e", "e4")?;
    let grandchild = Guest::warm().start()?;
    let _its_pager = grandchild.give_lazily(&generation, &layer, |_| Fate::Served)?;
    Typist::new(&grandchild)?.expect("f", "f4")?;
    end_all([clone, grandchild])
}

/// The generation of a VM that has run this code for one byte and has ended, and its lowest layer,
/// of which nothing has arrived yet.
fn frozen_after_one(code: &'static [u8]) -> Result<(tiny::Generation, FillingLayer), Failed> {
    let parent = Guest::code(code).start()?;
    Typist::new(&parent)?.expect("a", "1")?;
    let generation = parent.freeze()?;
    end_all([parent])?;
    let layer = FillingLayer::of(&generation)?;
    Ok((generation, layer))
}

fn a_vm_whose_page_is_lost_ends_and_never_reads_another_content() -> Result<(), Failed> {
    let (generation, layer) = frozen_after_one(READ)?;
    // Data that the guest reads, and code that it runs.
    for lost in [COUNT, tiny::CODE] {
        let clone = Guest::warm().start()?;
        let fate = move |offset| if offset == lost { Fate::Lost } else { Fate::Served };
        // A VM that has lost its code may end before it answers, and before its console opens. What
        // matters follows.
        let (pager, stream) = clone.order_lazily(&generation, &layer, fate)?;
        tiny::answer(&stream).ok();
        let mut console = clone.connect(&Open::Console).ok();
        if let Some(console) = &mut console {
            console.get_mut().write_all(b"b").ok();
        }
        if pager.waited()? != lost {
            return Err("another page is lost".into());
        }
        let mut said = String::new();
        if let Some(console) = &mut console {
            console.read_to_string(&mut said).ok();
        }
        if !said.is_empty() {
            return Err(format!("it goes on, and says {said:?}").into());
        }
        // By itself or by the kernel's SIGBUS. vmmd, which hears from the pager, names layer and
        // run.
        clone.wait_for_loss()?;
    }
    Ok(())
}

fn a_freeze_makes_no_content_of_a_lost_page() -> Result<(), Failed> {
    /// No program of a guest has to do with it.
    const UNUSED: u64 = 0x30_0000;
    let (generation, layer) = frozen_after_one(READ)?;
    let clone = Guest::warm().start()?;
    let fate = |offset| if offset == UNUSED { Fate::Lost } else { Fate::Served };
    let pager = clone.give_lazily(&generation, &layer, fate)?;
    let mut at_clone = Typist::new(&clone)?;
    at_clone.expect("b", "2")?;
    // Somebody else meets the loss, so that the VM goes on.
    if let Ok(byte) = clone.look_at("tiny-layer", UNUSED) {
        return Err(format!("a lost page has content: {byte}").into());
    }
    if pager.waited()? != UNUSED {
        return Err("another page is lost".into());
    }
    at_clone.expect("c", "3")?;
    // What is lost is of this VM alone: it would be in a copy of its memory.
    let refused = clone.freeze().err().ok_or("a VM whose memory is lost is frozen")?;
    let words = refused.message().unwrap_or_default();
    if !words.contains("are lost") {
        return Err(words.to_owned().into());
    }
    at_clone.expect("d", "4")?;
    end_all([clone])
}

/// A clone whose random number generator meets this fate where it reads what it is to do: its guest
/// has asked it for bytes, and waits.
fn clone_whose_device_needs(fate: Fate) -> Result<(Vmm, Typist, FillingLayer, Pager), Failed> {
    let (generation, layer) = frozen_after_one(RANDOM)?;
    let clone = Guest::warm().start()?;
    let fate = move |offset| if offset == DESCRIPTORS { fate } else { Fate::Served };
    let pager = clone.give_lazily(&generation, &layer, fate)?;
    let mut at_clone = Typist::new(&clone)?;
    at_clone.0.get_mut().write_all(b"b")?;
    if pager.waited()? != DESCRIPTORS {
        return Err("the VM waits for another page".into());
    }
    Ok((clone, at_clone, layer, pager))
}

fn a_device_that_waits_for_a_page_goes_on_when_it_comes() -> Result<(), Failed> {
    let (clone, mut at_clone, layer, pager) = clone_whose_device_needs(Fate::HeldBack)?;
    let refused = clone.freeze().err().ok_or("it is frozen while a device is at work")?;
    let words = refused.message().unwrap_or_default();
    if !words.contains("stop the devices") || !words.contains("memory that has not arrived") {
        return Err(words.to_owned().into());
    }
    drop(pager);
    let _pager = clone.give_pager(&layer, |_| Fate::Served)?;
    at_clone.expect("", "2")?;
    let generation = clone.freeze()?;
    at_clone.expect("c", "3")?;
    let grandchild = Guest::warm().start()?;
    let _its_pager = grandchild.give_lazily(&generation, &layer, |_| Fate::Served)?;
    Typist::new(&grandchild)?.expect("d", "3")?;
    end_all([clone, grandchild])
}

fn a_vm_whose_device_waits_for_a_page_is_killed_by_word() -> Result<(), Failed> {
    let (clone, _at_clone, _layer, _pager) = clone_whose_device_needs(Fate::HeldBack)?;
    end_all([clone])
}

fn a_vm_whose_device_needs_a_lost_page_ends_and_its_guest_is_told_nothing() -> Result<(), Failed> {
    let (clone, mut at_clone, _layer, _pager) = clone_whose_device_needs(Fate::Lost)?;
    let mut said = String::new();
    // The console ends with the VM.
    at_clone.0.read_to_string(&mut said).ok();
    if !said.is_empty() {
        return Err(format!("it goes on, and says {said:?}").into());
    }
    clone.wait_for_loss()
}
