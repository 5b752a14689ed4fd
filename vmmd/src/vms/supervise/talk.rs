//! The control connection of a running VM. It is re-established for as long as its vmm lives.

use crate::{
    process::control_client::{self, PATIENCE},
    store::VmDir,
};
use patina_control::messages::{FromVmm, Open, ToVmm};
use patina_daemon::chain;
use std::time::Duration;
use tokio::{
    io::BufReader,
    net::UnixStream,
    sync::mpsc,
    time::{Instant, sleep},
};

/// How long after a control connection broke the next is made; each time in a row twice as long, up
/// to [`RECONNECT_MAX`].
const RECONNECT: Duration = Duration::from_millis(25);
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// What comes of the control connection.
pub(super) enum Heard {
    /// The vmm says so.
    Said(FromVmm),
    /// The connection broke, and with it the calls that came over it: the vmm has told the guest
    /// so.
    Broke,
}

/// Holds the control connection: what the vmm says comes out of `said`, what goes into `orders` is
/// said to it. A connection that breaks, or cannot be made, is made again for as long as somebody
/// listens: until the process is gone.
pub(super) async fn talk(
    dir: VmDir,
    mut made: Option<BufReader<UnixStream>>,
    said: mpsc::Sender<Heard>,
    mut orders: mpsc::Receiver<ToVmm>,
) {
    let mut rest = RECONNECT;
    loop {
        let begun = Instant::now();
        let opened = match made.take() {
            Some(stream) => Ok(stream),
            None => control_client::open(&dir, &Open::Control, PATIENCE).await,
        };
        match opened {
            Ok(stream) => {
                if let Err(error) = converse(stream, &said, &mut orders).await {
                    tracing::warn!(error = %chain(&error), "the control connection broke");
                }
                if said.send(Heard::Broke).await.is_err() {
                    return;
                }
            }
            Err(_) if said.is_closed() => return,
            Err(error) => tracing::warn!(error = %chain(&error), "no control connection; it is tried again"),
        }
        // After a connection that lasted, the next one is made at once. If a vmm closes each at
        // once, there is a pause, so that it is not asked a thousand times a second.
        rest = if begun.elapsed() > RECONNECT_MAX { RECONNECT } else { (rest * 2).min(RECONNECT_MAX) };
        sleep(rest).await;
    }
}

/// Until the connection breaks.
async fn converse(
    stream: BufReader<UnixStream>,
    said: &mpsc::Sender<Heard>,
    orders: &mut mpsc::Receiver<ToVmm>,
) -> Result<(), control_client::ControlError> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut reading = BufReader::new(&mut reading);
    let hear = async {
        let mut is_told = false;
        while let Some(line) = control_client::read_known(&mut reading, &mut is_told).await? {
            if said.send(Heard::Said(line)).await.is_err() {
                break;
            }
        }
        Ok::<(), control_client::ControlError>(())
    };
    let tell = async {
        while let Some(order) = orders.recv().await {
            control_client::write_line(&mut writing, &order).await?;
        }
        std::future::pending::<Result<(), control_client::ControlError>>().await
    };
    tokio::select! { heard = hear => heard, told = tell => told }
}
