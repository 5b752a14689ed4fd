use super::*;
use crate::memory::{allocate, reserve};
use crate::sys::pagemap::Pagemap;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn pages_are_copied_ahead_only_once_the_generation_is_sealed() {
    const RAM: u64 = 2 << 20;
    let (memfd, shared) = allocate(RAM).expect("RAM");
    shared.write_slice(&[7; 4 * 4096], GuestAddress(0)).expect("a write");
    let view = reserve(RAM).expect("address space");
    let base = Layers::whole(memfd.try_clone().expect("the same file"), RAM);
    base.map_over(&view).expect("a view");
    let region = view.iter().next().expect("a region");
    let map = Pagemap::open().expect("the page tables");
    let written = || vec![0..2 * 4096, 3 * 4096..4 * 4096];
    // There is a mapping that could write: the memfd cannot be sealed.
    let refused = seal_and_prefault(&memfd, &view, written());
    assert!(matches!(refused, Err(FreezeError::Seal(rustix::io::Errno::BUSY))), "{refused:?}");
    assert_eq!(map.private(region, Pages::All).expect("a scan"), []);
    drop(shared);
    let copying = seal_and_prefault(&memfd, &view, written()).expect("a seal");
    copying.expect("a thread").join().expect("it copies");
    assert_eq!(map.private(region, Pages::All).expect("a scan"), written());
}

#[test]
fn a_pause_that_comes_when_the_agent_may_have_released_its_programs_is_refused() {
    let until = Instant::now();
    assert!(in_time(until.checked_sub(Duration::from_nanos(1)).expect("a time"), Some(until)).is_ok());
    for late in [Duration::ZERO, Duration::from_secs(9)] {
        let error = in_time(until + late, Some(until)).expect_err("too late");
        assert!(matches!(error, FreezeError::Late) && !error.is_fatal());
        assert!(error.to_string().contains("nothing was frozen, try again"), "{error}");
    }
    assert!(in_time(until, None).is_ok(), "no agent has prepared");
}
