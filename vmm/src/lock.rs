//! Locks whose data stays valid whatever happens to their holders.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data stays valid whatever its last holder did, so that poison means nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
