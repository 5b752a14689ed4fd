//! What runs in a guest.
//!
//! ```text
//!  gc-init (PID 1)   [`init`]     mounts, starts gc-agent, reaps, powers off
//!  gc-agent          [`agent`]    one thread, one poll(2): the link to the host, programs' calls, exec sessions
//!                    [`machine`]  what the agent changes in the kernel: name, addresses, clock
//!                    [`cgroup`]   where all other programs are, so that they can be held
//!  gc                [`cli`]      the command; its commonest verbs are answered before libc starts (bin/gc/entry.rs)
//!                    [`identity`] the file that they read
//!                    [`sys`]      all unsafe code
//! ```
//!
//! A guest may run where its kernel is a hundred times slower than its user mode: a system call costs
//! 0.3 ms there, a page's first touch 4 ms, a context switch 12 ms. So nothing here runs periodically,
//! nothing polls, nothing has threads, and what is touched once is kept.

pub mod agent;
pub mod cgroup;
pub mod cli;
pub mod console;
pub mod identity;
pub mod init;
pub mod machine;
pub mod sys;
