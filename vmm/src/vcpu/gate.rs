//! Pauses all vCPUs of a VM, and runs jobs on their threads meanwhile.
//!
//! ```text
//!  running ──pause──▶ stopping ──every vCPU at the gate──▶ paused ──resume──▶ running
//! ```
//! A vCPU comes to the gate between two guest instructions, after it has finished its I/O. A vCPU
//! whose thread has ended counts as paused and runs no jobs.

use crate::sys::kick::Target;
use patina_daemon::lock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A job for a paused vCPU's own thread. `R` is what the thread works with.
pub type Job<R> = Box<dyn FnOnce(&mut R) + Send>;

/// The gate of one VM.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_shut: bool,
    vcpus: usize,
    waiting: usize,
    ended: usize,
}

impl State {
    fn all_are_here(&self) -> bool {
        self.waiting + self.ended >= self.vcpus
    }
}

/// A vCPU's thread has ended and cannot do its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ask vCPU {0}: its thread has ended")]
pub struct VcpuEnded(pub u8);

/// Why the vCPUs could not be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// A vCPU's thread has ended.
    #[error(transparent)]
    Ended(#[from] VcpuEnded),
    /// A vCPU has not stopped. Some may have: the caller resumes them.
    #[error(
        "pause vCPU {vcpu}: it has not stopped after {patience:?}; it may be waiting for memory that has not arrived"
    )]
    Busy {
        /// The vCPU's number.
        vcpu: u8,
        /// How long the pause waited for it.
        patience: Duration,
    },
}

impl Gate {
    /// A gate for `vcpus`.
    #[must_use]
    pub fn new(vcpus: u8, is_shut: bool) -> Self {
        let state = State { is_shut, vcpus: usize::from(vcpus), ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether a vCPU must come to [`Gate::wait`] before it runs on.
    pub fn is_shut(&self) -> bool {
        self.lock().is_shut
    }

    /// A vCPU waits here until the gate opens, and does its jobs meanwhile.
    pub fn wait<R>(&self, runner: &mut R, jobs: &Receiver<Job<R>>) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.is_shut {
            // Jobs start once all vCPUs are here, because one that still runs may send another an
            // interrupt.
            if state.all_are_here()
                && let Ok(job) = jobs.try_recv()
            {
                drop(state);
                job(runner);
                state = self.lock();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.waiting -= 1;
    }

    /// A vCPU's thread ends.
    pub fn leave(&self) {
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }
}

/// All vCPUs of a VM, as the thread that pauses them sees them. `R` is what each vCPU's thread
/// works with.
pub struct Vcpus<R> {
    gate: std::sync::Arc<Gate>,
    threads: Vec<(Target, Sender<Job<R>>)>,
}

impl<R: 'static> Vcpus<R> {
    /// The threads of a VM's vCPUs, in order, with where their jobs go.
    #[must_use]
    pub fn new(gate: std::sync::Arc<Gate>, threads: Vec<(Target, Sender<Job<R>>)>) -> Self {
        Self { gate, threads }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Stops all vCPUs between two instructions. Once all have stopped, each does `work`, without a
    /// second wake-up. Returns their results, in order. After any error the caller
    /// [resumes](Self::resume) them.
    ///
    /// # Errors
    /// One of the vCPUs' threads has ended. Or one has not stopped after `patience`; none does
    /// `work` later then.
    pub fn pause_and<T, F>(&self, work: F, patience: Duration) -> Result<Vec<T>, PauseError>
    where
        T: Send + 'static,
        F: Fn(&mut R) -> T + Clone + Send + 'static,
    {
        let deadline = Instant::now() + patience;
        let is_wanted = std::sync::Arc::new(AtomicBool::new(true));
        let wanted = std::sync::Arc::clone(&is_wanted);
        let answers = self.ask(move |runner| wanted.load(Ordering::Acquire).then(|| work(runner)));
        let mut state = self.gate.lock();
        state.is_shut = true;
        for (thread, _) in &self.threads {
            thread.kick();
        }
        drop(state);
        let answers = match answers {
            Ok(answers) => answers.collect_until(deadline, patience),
            Err(error) => Err(error.into()),
        };
        is_wanted.store(false, Ordering::Release);
        if matches!(answers, Err(PauseError::Ended(_))) {
            // The caller may rely on all vCPUs being stopped.
            self.wait_for_all(deadline);
        }
        Ok(answers?.into_iter().flatten().collect())
    }

    fn wait_for_all(&self, deadline: Instant) {
        let mut state = self.gate.lock();
        while !state.all_are_here() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.gate.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Resumes all vCPUs.
    pub fn resume(&self) {
        self.gate.lock().is_shut = false;
        self.gate.changed.notify_all();
    }

    /// Starts `work` on every paused vCPU at once. The caller may do other work before it
    /// [collects](Answers::collect) the results, which it must do before the vCPUs run.
    ///
    /// # Errors
    /// One of the vCPUs' threads has ended.
    pub fn begin<T, F>(&self, work: F) -> Result<Answers<T>, VcpuEnded>
    where
        T: Send + 'static,
        F: Fn(&mut R) -> T + Clone + Send + 'static,
    {
        let answers = self.ask(work)?;
        self.gate.wake();
        Ok(answers)
    }

    /// Queues `work` for each vCPU.
    fn ask<T, F>(&self, work: F) -> Result<Answers<T>, VcpuEnded>
    where
        T: Send + 'static,
        F: Fn(&mut R) -> T + Clone + Send + 'static,
    {
        let mut answers = Vec::new();
        for (index, (_, jobs)) in (0..).zip(&self.threads) {
            let (sender, answer) = channel();
            let work = work.clone();
            // The caller may have returned after an error.
            let job: Job<R> = Box::new(move |runner| drop(sender.send(work(runner))));
            jobs.send(job).map_err(|_| VcpuEnded(index))?;
            answers.push((index, answer));
        }
        Ok(Answers(answers))
    }
}

/// The pending results of the vCPUs, in order.
#[must_use = "a vCPU that has not done its work does it at the next pause"]
pub struct Answers<T>(Vec<(u8, Receiver<T>)>);

impl<T> Answers<T> {
    /// Waits until all have returned.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn collect(self) -> Result<Vec<T>, VcpuEnded> {
        self.0.into_iter().map(|(index, answer)| answer.recv().map_err(|_| VcpuEnded(index))).collect()
    }

    fn collect_until(self, deadline: Instant, patience: Duration) -> Result<Vec<T>, PauseError> {
        let answer = |(vcpu, answer): (u8, Receiver<T>)| {
            let left = deadline.saturating_duration_since(Instant::now());
            answer.recv_timeout(left).map_err(|error| match error {
                RecvTimeoutError::Timeout => PauseError::Busy { vcpu, patience },
                RecvTimeoutError::Disconnected => VcpuEnded(vcpu).into(),
            })
        };
        self.0.into_iter().map(answer).collect()
    }
}

#[cfg(test)]
#[path = "gate_test.rs"]
mod tests;
