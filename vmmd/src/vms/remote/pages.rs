//! The connections over which another host's pager reads layers of this one.
//!
//! ```text
//!  pager ◀── socket ── vmmd ── connect, Hello ──▶ vmmd ── socket ──▶ pager
//!    ╰───────────────────── TLS, runs ──────────────────────────────╯
//! ```
//!
//! The vmmd that needs layers connects to the port on which the other one has its gRPC interface,
//! and says for which lease. Both give the connection to their pagers, whose jails cannot make any,
//! and have nothing to do with it from then on. The pagers show each other the lease's certificate,
//! which came with the call for clones: who connects without it gets nothing.

use crate::{
    pager::lender::{HELLO_BYTES, lease_of, watch},
    vms::{host::Host, remote_data::error::PagesError},
};
use patina_daemon::{chain, listen::Aside};
use std::{os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use uuid::Uuid;

/// How long the other host may take to say for which lease it has connected.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Most connections of which that is not known yet. One more is hung up.
const HELLOS_MAX: usize = 64;
/// Which lease a connection is for.
async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> Result<Uuid, PagesError> {
    let mut hello = [0; HELLO_BYTES];
    let read = timeout(HELLO_PATIENCE, stream.read_exact(&mut hello)).await;
    read.map_err(|_| PagesError::Silent(HELLO_PATIENCE))?.map_err(PagesError::Broken)?;
    lease_of(&hello).ok_or(PagesError::Foreign)
}

impl Host {
    /// Takes connections of other hosts' pagers, for as long as this `vmmd` listens.
    pub async fn serve_pages(self: Arc<Self>, mut connections: mpsc::Receiver<Aside>) {
        let turns = Arc::new(Semaphore::new(HELLOS_MAX));
        while let Some(connection) = connections.recv().await {
            let Ok(turn) = Arc::clone(&turns).try_acquire_owned() else {
                tracing::warn!("too many connections for pages that say nothing: one more is hung up");
                continue;
            };
            let host = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = host.take_connection(connection).await {
                    tracing::warn!(error = %chain(&error), "a connection for pages is refused");
                }
                drop(turn);
            });
        }
    }

    async fn take_connection(self: &Arc<Self>, connection: Aside) -> Result<(), PagesError> {
        let (lease, stream) = match connection {
            Aside::Unix(mut stream) => (read_hello(&mut stream).await?, stream.into_std().map(OwnedFd::from)),
            Aside::Tcp(mut stream) => {
                watch(&stream).map_err(PagesError::Broken)?;
                (read_hello(&mut stream).await?, stream.into_std().map(OwnedFd::from))
            }
        };
        let stream = stream.map_err(PagesError::Broken)?;
        let mut borrowed = self.borrow(lease).ok_or(PagesError::NoLease(lease))?;
        let with = (stream, borrowed.credential.clone(), self.settings.compress_pages);
        let served = self.pager.serve_peer(Uuid::new_v4(), &borrowed.layers, with).await?;
        // The lease holds them.
        borrowed.layers.clear();
        tokio::spawn(async move {
            // An error: the pager is gone.
            borrowed.is_done = served.await.unwrap_or(false);
            // The lease has had this connection until here.
            drop(borrowed);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::lender::hello;
    use tokio::{io::AsyncWriteExt as _, net::UnixStream};

    async fn hear(bytes: &[u8]) -> Result<Uuid, PagesError> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).await.unwrap();
        ours.shutdown().await.unwrap();
        read_hello(&mut theirs).await
    }

    #[tokio::test]
    async fn a_connection_says_for_which_lease_it_is() {
        let hello = hello(Uuid::from_u128(7));
        assert_eq!(hear(&hello).await.unwrap(), Uuid::from_u128(7));
        assert!(matches!(hear(&hello[..31]).await, Err(PagesError::Broken(_))));
        assert!(matches!(hear(&[0; HELLO_BYTES]).await, Err(PagesError::Foreign)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_not_waited_for_long() {
        let (_ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(matches!(read_hello(&mut theirs).await, Err(PagesError::Silent(_))));
    }
}
