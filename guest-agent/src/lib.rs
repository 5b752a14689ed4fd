//! The programs that run in a guest.
//!
//! ```text
//!  gc-init (PID 1)   [`init`]     mounts, starts gc-agent, reaps, powers off
//!  gc-agent          [`agent`]    one thread, one poll(2): the link to the host, calls of
//!                                 programs, exec sessions
//!                    [`machine`]  what the agent changes in the kernel: name, addresses, clock
//!                    [`cgroup`]   the cgroup of all other programs, so that they can be held
//!  gc                [`cli`]      the command; its most frequent verbs are answered before libc
//!                                 starts (bin/gc/entry.rs)
//!                    [`identity`] the file that they read
//!                    [`sys`]      all unsafe code
//! ```
//!
//! A guest's kernel may be a hundred times slower than its user mode: a system call takes 0.3 ms,
//! the first touch of a page 4 ms, a context switch 12 ms. So nothing here runs periodically,
//! nothing polls, there are no threads, and memory that was touched is kept and reused.

pub mod agent;
pub mod cgroup;
pub mod cli;
pub mod console;
pub mod identity;
pub mod init;
pub mod machine;
pub mod sys;
