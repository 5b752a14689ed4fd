//! Takes the parts of a file as they arrive, and puts them on the shelf.

use super::{
    coming::Coming,
    error::{FetchFault, STALL, ShelfError},
    under_way::Fetching,
};
use patina_proto::v1::ReadImageResponse;
use tokio::{task::spawn_blocking, time::timeout};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// Returns the file's length when all of it is on the shelf. `begin` makes room for so many bytes,
/// where it may block.
///
/// # Errors
/// It does not arrive, or cannot be written. Then nothing is left of it.
pub async fn arrive(
    mut parts: impl Stream<Item = Result<ReadImageResponse, Status>> + Unpin,
    begin: impl FnOnce(u64) -> Result<Coming, ShelfError> + Send + 'static,
    fetching: &Fetching,
) -> Result<u64, FetchFault> {
    let first = next(&mut parts).await?.ok_or(ShelfError::Form)?;
    let mut coming = blocking(move || begin(first.total_bytes)).await?;
    let total = coming.total();
    fetching.tell(0, total);
    while let Some(ReadImageResponse { bytes, .. }) = next(&mut parts).await? {
        // Messages without bytes are no progress.
        if bytes.is_empty() {
            return Err(ShelfError::Form.into());
        }
        coming = blocking(move || coming.write(&bytes).map(|()| coming)).await?;
        fetching.tell(coming.done(), total);
    }
    blocking(move || coming.finish()).await?;
    Ok(total)
}

async fn next(
    parts: &mut (impl Stream<Item = Result<ReadImageResponse, Status>> + Unpin),
) -> Result<Option<ReadImageResponse>, FetchFault> {
    let part = timeout(STALL, parts.next()).await.map_err(|_| FetchFault::Silent)?;
    part.transpose().map_err(|status| FetchFault::Refused(Box::new(status)))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ShelfError> + Send + 'static,
) -> Result<T, FetchFault> {
    Ok(spawn_blocking(work).await.map_err(|_| FetchFault::Stopping)??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vms::fetched_data::{shelf::Shelf, under_way::UnderWay};
    use std::sync::Arc;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    const CONTENT: &[u8] = b"a kernel of some bytes";

    fn first(total_bytes: u64) -> Result<ReadImageResponse, Status> {
        Ok(ReadImageResponse { total_bytes, bytes: Vec::new() })
    }

    fn part(bytes: &[u8]) -> Result<ReadImageResponse, Status> {
        Ok(ReadImageResponse { total_bytes: 0, bytes: bytes.to_vec() })
    }

    /// What comes of these parts; the connection stays open after them, or ends.
    async fn arrived(
        parts: Vec<Result<ReadImageResponse, Status>>,
        stays_open: bool,
    ) -> (Result<u64, FetchFault>, usize) {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::open(folder.path(), 1 << 20).unwrap());
        let digest = blake3::hash(CONTENT);
        let (_, fetching) = UnderWay::default().join(digest).unwrap();
        let (sender, receiver) = mpsc::channel(parts.len() + 1);
        for part in parts {
            sender.try_send(part).unwrap();
        }
        let open = stays_open.then_some(sender);
        let begin = move |bytes| shelf.begin(digest, bytes, &|_| false);
        let end = arrive(ReceiverStream::new(receiver), begin, &fetching.unwrap()).await;
        drop(open);
        (end, std::fs::read_dir(folder.path()).unwrap().count())
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_arrives_in_parts_whole() {
        let length = CONTENT.len() as u64;
        let (end, files) =
            arrived(vec![first(length), part(&CONTENT[..3]), part(&CONTENT[3..])], false).await;
        assert_eq!((end.unwrap(), files), (length, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_host_sends_instead_leaves_nothing_behind() {
        let length = CONTENT.len() as u64;
        let shelf = |fault: FetchFault| match fault {
            FetchFault::Shelf(error) => error,
            other => panic!("{other}"),
        };
        let failed = async |parts| {
            let (end, files) = arrived(parts, false).await;
            assert_eq!(files, 0);
            end.unwrap_err()
        };
        let other = failed(vec![first(length), part(&[b'x'; 22])]).await;
        assert!(matches!(shelf(other), ShelfError::OtherContent(_)));
        let short = failed(vec![first(length), part(&CONTENT[1..])]).await;
        assert!(matches!(shelf(short), ShelfError::Short { done: 21, total: 22 }));
        let long = failed(vec![first(length - 1), part(CONTENT)]).await;
        assert!(matches!(shelf(long), ShelfError::Long(21)));
        let huge = failed(vec![first(u64::MAX), part(CONTENT)]).await;
        assert!(matches!(shelf(huge), ShelfError::TooLarge { .. }));
        for parts in [vec![], vec![first(0)], vec![part(CONTENT)], vec![first(length), part(b"")]] {
            assert!(matches!(shelf(failed(parts).await), ShelfError::Form));
        }
        let gone = failed(vec![first(length), part(b"a"), Err(Status::unavailable("gone"))]).await;
        assert!(matches!(gone, FetchFault::Refused(_)), "{gone}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_stalls_is_given_up_and_leaves_nothing_behind() {
        let length = CONTENT.len() as u64;
        for parts in [vec![], vec![first(length)], vec![first(length), part(CONTENT)]] {
            let begun = tokio::time::Instant::now();
            let (end, files) = arrived(parts, true).await;
            assert!(matches!(end, Err(FetchFault::Silent)), "{end:?}");
            assert_eq!((files, begun.elapsed().as_secs()), (0, STALL.as_secs()));
        }
    }
}
