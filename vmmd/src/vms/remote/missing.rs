//! Has another host get the kernel and the root file system that it lacks.
//!
//! ```text
//!  SpawnClones ── MISSING_IMAGE ──▶ FetchImages ── how far it is ... end ──▶ SpawnClones
//!                                        └──▶ ReadImage, of this host
//! ```
//!
//! No call is made in advance: a host that has them, as nearly all have, is asked once. One that
//! gets them says how far it is, so a slow connection is told from one that stalls.

use crate::vms::{
    host::Host,
    remote_data::{
        error::{FETCH_PATIENCE, MISSING_IMAGE, PATIENCE, RemoteError},
        place::There,
    },
};
use patina_proto::v1::{FetchImagesRequest, ImageKind, WantedImage, host_peer_client::HostPeerClient};
use patina_snapshot::manifest::ImageRef;
use tokio::time::timeout;
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;

/// Whether a host makes no clones because it lacks their kernel or root file system.
pub(super) fn is_missing_image(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == MISSING_IMAGE)
}

impl Host {
    /// Returns when the other host has them.
    ///
    /// # Errors
    /// It does not get them, or says nothing for long.
    pub(super) async fn have_images_fetched(
        &self,
        client: &mut HostPeerClient<Channel>,
        there: &There,
        images: &[ImageRef; 2],
    ) -> Result<(), RemoteError> {
        let host = || there.place.host.clone();
        tracing::info!(
            host = host(),
            "another host lacks the VM's kernel or root file system, and reads it here"
        );
        let [kernel, rootfs] = images;
        let wanted = |kind: ImageKind, image: &ImageRef| WantedImage {
            kind: kind.into(),
            digest: image.digest.as_bytes().to_vec(),
        };
        let request = FetchImagesRequest {
            images: vec![wanted(ImageKind::Kernel, kernel), wanted(ImageKind::Rootfs, rootfs)],
            address: self.settings.peers.own_address().to_owned(),
            host_id: self.tickets.host_id().to_owned(),
            to_host_id: there.place.host_id.clone(),
        };
        let silent = |_| RemoteError::Silent { host: host() };
        let refused = |status| RemoteError::NotFetched { host: host(), status: Box::new(status) };
        let fetched = async {
            let answer = timeout(PATIENCE, client.fetch_images(request)).await.map_err(silent)?;
            let mut progress = answer.map_err(refused)?.into_inner();
            while timeout(PATIENCE, progress.message()).await.map_err(silent)?.map_err(refused)?.is_some() {}
            Ok(())
        };
        let late = |_| RemoteError::FetchLate { host: host() };
        timeout(FETCH_PATIENCE, fetched).await.map_err(late)?
    }
}
