//! Notifies systemd: one datagram to the socket that `NOTIFY_SOCKET` names (sd_notify(3)).

use crate::chain;
use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};
use tokio::task::JoinHandle;

/// The daemon serves.
pub const READY: &str = "READY=1";
/// It is about to exit.
pub const STOPPING: &str = "STOPPING=1";
/// It is alive.
const ALIVE: &str = "WATCHDOG=1";

/// Tells the service manager, if there is one.
pub fn notify(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(socket = %socket.display(), error = %chain(&error), "tell the service manager");
    }
}

/// Tells the service manager that the daemon is alive, if it wants to hear that (`WatchdogSec=`),
/// until the task is aborted. It is told only when `check` is true: `check` asks the parts of the
/// daemon without which it is of no use, and does not end where one hangs. Then the manager
/// restarts the daemon.
pub fn watchdog<F>(check: impl Fn() -> F + Send + 'static) -> Option<JoinHandle<()>>
where
    F: Future<Output = bool> + Send + 'static,
{
    let variable = |name| env::var(name).ok();
    let limit = limit(variable("WATCHDOG_USEC")?, variable("WATCHDOG_PID"))?;
    Some(tokio::spawn(feed(limit, check, || notify(ALIVE))))
}

/// The longest that the manager waits for a sign of life. None: it waits for another process's, or
/// says nothing that is a time.
fn limit(us: String, pid: Option<String>) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let us = us.parse().ok().filter(|us| is_ours && *us > 0)?;
    Some(Duration::from_micros(us))
}

async fn feed<F: Future<Output = bool>>(limit: Duration, check: impl Fn() -> F, tell: impl Fn()) {
    // Twice in the time that there is, as sd_watchdog_enabled(3) advises.
    let mut ticks = tokio::time::interval(limit / 2);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if check().await {
            tell();
        } else {
            tracing::error!("the daemon does not work; the service manager is not told that it is alive");
        }
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        // A name in the kernel, not in the file system.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn receive(manager: &UnixDatagram) -> Vec<u8> {
        let mut bytes = [0; 64];
        let length = manager.recv(&mut bytes).unwrap();
        bytes[..length].to_vec()
    }

    #[test]
    fn the_managers_limit_is_for_the_process_that_it_names() {
        let limit = |us: &str, pid: Option<String>| super::limit(us.to_owned(), pid);
        let own = Some(std::process::id().to_string());
        assert_eq!(limit("2000000", own.clone()), Some(Duration::from_secs(2)));
        assert_eq!(limit("2000000", None), Some(Duration::from_secs(2)));
        assert_eq!(limit("2000000", Some("1".into())), None);
        assert_eq!([limit("0", own.clone()), limit("x", own)], [None, None]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_whose_parts_hang_or_fail_is_not_alive() {
        for answers in [true, false] {
            let (told, checked) = (Cell::new(0), Cell::new(0));
            let check = || async {
                checked.set(checked.get() + 1);
                if checked.get() > 10 {
                    // Hangs, or says that it does not work.
                    return if answers { std::future::pending().await } else { false };
                }
                true
            };
            let feed = feed(Duration::from_secs(2), check, || told.set(told.get() + 1));
            let ended = tokio::time::timeout(Duration::from_secs(100), feed).await;
            assert!(ended.is_err());
            assert_eq!(told.get(), 10);
            assert_eq!(checked.get() > 50, !answers, "{}", checked.get());
        }
    }

    #[test]
    fn both_kinds_of_sockets_hear() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        assert_eq!(receive(&manager), b"READY=1");
        let name = format!("patina-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), STOPPING).unwrap();
        assert_eq!(receive(&manager), b"STOPPING=1");
    }
}
