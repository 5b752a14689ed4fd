//! Pauses all vCPUs of a VM, and gives each of them something to do meanwhile.
//!
//! ```text
//!  running ──pause──▶ stopping ──every vCPU at the gate──▶ paused ──resume──▶ running
//! ```
//! A vCPU comes to the gate between two guest instructions, with the I/O that it was at finished. A vCPU whose
//! thread has ended counts as being there, and has nothing to say.

use crate::lock::lock;
use crate::sys::kick::Target;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a paused vCPU is asked to do, on its own thread. `R` is what the thread works with.
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

/// A vCPU has ended and cannot do its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ask vCPU {0}: its thread has ended")]
pub struct VcpuEnded(pub u8);

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

    /// A vCPU asks before it runs; it must come to [`Gate::wait`] when this is true.
    pub fn is_shut(&self) -> bool {
        self.lock().is_shut
    }

    /// A vCPU waits here until the gate opens, doing what it is asked.
    pub fn wait<R>(&self, runner: &mut R, jobs: &Receiver<Job<R>>) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.is_shut {
            // Not before all are here: one that still runs may yet send another an interrupt.
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

/// All vCPUs of a VM, as the thread that pauses them sees them. `R` is what each vCPU's thread works with.
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

    /// Stops all vCPUs between two instructions, and has each do `work` when all have stopped: returns what they return, in order.
    /// They do it as they come to the gate, without being woken for it once more.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn pause_and<T, F>(&self, work: F) -> Result<Vec<T>, VcpuEnded>
    where
        T: Send + 'static,
        F: Fn(&mut R) -> T + Clone + Send + 'static,
    {
        let answers = self.ask(work);
        let mut state = self.gate.lock();
        state.is_shut = true;
        for (thread, _) in &self.threads {
            thread.kick();
        }
        drop(state);
        let answers = answers.and_then(Answers::collect);
        if answers.is_err() {
            // Whoever asked finds all of them stopped.
            let mut state = self.gate.lock();
            while !state.all_are_here() {
                state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        answers
    }

    /// Lets all vCPUs run on.
    pub fn resume(&self) {
        self.gate.lock().is_shut = false;
        self.gate.changed.notify_all();
    }

    /// Has every paused vCPU do `work`, all at once. The caller may do something else until it
    /// [collects](Answers::collect) what they return; it must before the vCPUs run.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn begin<T, F>(&self, work: F) -> Result<Answers<T>, VcpuEnded>
    where
        T: Send + 'static,
        F: Fn(&mut R) -> T + Clone + Send + 'static,
    {
        let answers = self.ask(work)?;
        self.gate.wake();
        Ok(answers)
    }

    /// Puts `work` where each vCPU finds it at the gate.
    fn ask<T, F>(&self, work: F) -> Result<Answers<T>, VcpuEnded>
    where
        T: Send + 'static,
        F: Fn(&mut R) -> T + Clone + Send + 'static,
    {
        let mut answers = Vec::new();
        for (index, (_, jobs)) in (0..).zip(&self.threads) {
            let (sender, answer) = channel();
            let work = work.clone();
            // Whoever asked may be gone after an error.
            let job: Job<R> = Box::new(move |runner| drop(sender.send(work(runner))));
            jobs.send(job).map_err(|_| VcpuEnded(index))?;
            answers.push((index, answer));
        }
        Ok(Answers(answers))
    }
}

/// What the vCPUs will return, in order.
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
}
