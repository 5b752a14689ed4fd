//! `gc-agent`: the guest's daemon. See `guest_agent::agent`.
// (The test harness of --all-targets brings its own.)
#![cfg_attr(not(test), no_main)]

use guest_agent::agent::{Agent, Settings};
use guest_agent::machine::Guest;
use guest_agent::{console, sys};
use patina_abi::{EXEC_PORT, local};
use patina_daemon::chain;
use std::os::unix::net::UnixListener;

/// No Rust `main`: its start-up is ten system calls for what is not used here.
#[allow(unsafe_code, reason = "the C library's start-up code calls this name")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code, reason = "the harness has its own"))]
extern "C" fn main() -> i32 {
    sys::heap::keep_freed_memory();
    let Err(error) = serve();
    console::say(&format!("gc-agent: {}", chain(error.as_ref())));
    1
}

fn serve() -> Result<std::convert::Infallible, Box<dyn std::error::Error>> {
    // A program that closes its pipe must not end the agent.
    sys::signals::block(&[libc::SIGPIPE])?;
    let local = listen_local().map_err(|e| format!("listen on {}: {e}", local::SOCKET))?;
    let exec = sys::vsock::listen(EXEC_PORT).map_err(|e| format!("listen on vsock port {EXEC_PORT}: {e}"))?;
    Ok(Agent::new(local.into(), exec, Guest::new(), Settings::of_a_guest()).run()?)
}

fn listen_local() -> std::io::Result<UnixListener> {
    if let Some(directory) = std::path::Path::new(local::SOCKET).parent() {
        std::fs::create_dir_all(directory)?;
    }
    let listener = match UnixListener::bind(local::SOCKET) {
        // Left by an agent that died.
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            std::fs::remove_file(local::SOCKET)?;
            UnixListener::bind(local::SOCKET)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    // Programs of every user may call; what they may do is the host's to say.
    std::fs::set_permissions(local::SOCKET, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    Ok(listener)
}
