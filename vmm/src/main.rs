//! The `vmm` process: runs one VM, configured by a file descriptor.
fn main() {}
