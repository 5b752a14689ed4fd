//! Work on several threads.

use std::{
    num::NonZero,
    panic,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

/// Most threads: a host has VMs to run meanwhile, and the disk is slower than four of them.
const THREADS_MAX: usize = 4;
/// For fewer items, another thread takes longer to begin than to work.
const ITEMS_OF_A_THREAD: usize = 8;

/// Does `work` for each of `items`, each with a state of its thread that `begin` makes. Returns
/// these states. At the first error, what has not begun is not done.
///
/// # Errors
/// That of `work`.
pub(super) fn each<I: Sync, S: Send, E: Send>(
    items: &[I],
    begin: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &I) -> Result<(), E> + Sync,
) -> Result<Vec<S>, E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        let mut state = begin();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            if let Err(error) = work(&mut state, item) {
                failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(state)
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let others = cpus.min(THREADS_MAX).min(items.len() / ITEMS_OF_A_THREAD).saturating_sub(1);
    thread::scope(|scope| {
        // Where no more threads are to be had, this one does the work.
        let spawn = |_| thread::Builder::new().name("snapshot".to_owned()).spawn_scoped(scope, run).ok();
        let others: Vec<_> = (0..others).filter_map(spawn).collect();
        let mut states = vec![run()];
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        };
        states.extend(others.into_iter().map(join));
        states.into_iter().collect()
    })
}
