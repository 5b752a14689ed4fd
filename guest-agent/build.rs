//! `gc` starts at its own entry point; see `src/bin/gc/entry.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bin=gc=-Wl,--entry=gc_entry");
    // One segment for headers, constants and code: one page fault instead of three.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,noseparate-code,--no-rosegment,-z,norelro,--build-id=none");
}
