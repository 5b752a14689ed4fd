//! Metrics over plain HTTP: `GET /metrics`, and nothing else. For a loopback address: whoever reaches it reads them.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

/// Longest request, headers included.
const REQUEST_MAX_BYTES: u64 = 8192;
/// For a request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most connections at once; the next ones wait.
const CONNECTIONS_MAX: usize = 16;
/// What Prometheus wants to be told.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Others could read them.
    #[error(
        "serve metrics on {0}: it is no loopback address; use 127.0.0.1, and ssh or a proxy from elsewhere"
    )]
    Open(SocketAddr),
    /// The kernel refuses.
    #[error("serve metrics on {address}: {source}; use another --metrics")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Listens on a loopback address.
///
/// # Errors
/// It is another one, or the kernel refuses.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, HttpError> {
    if !address.ip().is_loopback() {
        return Err(HttpError::Open(address));
    }
    TcpListener::bind(address).await.map_err(|source| HttpError::Bind { address, source })
}

/// Answers with what `text` says, until its future is dropped. An error of `text` is shown with status 503.
pub async fn serve<F, T, E>(listener: TcpListener, text: F)
where
    F: Fn() -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Result<String, E>> + Send,
    E: std::fmt::Display + Send,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: one of ours has to end first.
                tracing::warn!(%error, "accept a connection for metrics");
                connections.join_next().await;
                continue;
            }
        };
        let text = text.clone();
        connections.spawn(async move {
            let _place = place;
            match timeout(PATIENCE, answer(stream, text)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "serve metrics"),
                Err(_) => tracing::debug!("a reader of metrics was too slow"),
            }
        });
    }
}

async fn answer<F, T, E>(mut stream: TcpStream, text: F) -> io::Result<()>
where
    F: Fn() -> T,
    T: Future<Output = Result<String, E>>,
    E: std::fmt::Display,
{
    let (status, kind, body) = match request(&mut stream).await? {
        Some(request) if request.starts_with("GET /metrics HTTP/1.") => match text().await {
            Ok(body) => ("200 OK", CONTENT_TYPE, body),
            Err(error) => ("503 Service Unavailable", "text/plain", format!("{error}\n")),
        },
        Some(request) if request.starts_with("GET ") => {
            ("404 Not Found", "text/plain", "metrics are at /metrics\n".to_owned())
        }
        _ => ("400 Bad Request", "text/plain", "say GET /metrics HTTP/1.1\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The request's first line, once its head has come; None: it is none, or too long.
async fn request(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut lines = BufReader::new(stream.take(REQUEST_MAX_BYTES)).split(b'\n');
    let first = lines.next_segment().await?;
    while let Some(line) = lines.next_segment().await? {
        if line.is_empty() || line == b"\r" {
            return Ok(first.and_then(|line| String::from_utf8(line).ok()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    async fn ask(text: &str) -> String {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server =
            tokio::spawn(serve(listener, || async { Ok::<_, Infallible>("a 1\n# EOF\n".to_owned()) }));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A server that closes before all was read may reset.
        if let Err(error) = stream.read_to_end(&mut answer).await {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        server.abort();
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn metrics_are_where_prometheus_looks() {
        let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\na 1\n# EOF\n"),
            "{answer}"
        );
        assert!(answer.contains("Content-Length: 10\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        assert!(ask("GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
        assert!(ask("\u{1}\u{2}\n\n").await.starts_with("HTTP/1.1 400 "));
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(10_000));
        let answer = ask(&long).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    #[tokio::test]
    async fn only_this_host_reads_them() {
        let refused = listen("0.0.0.0:0".parse().unwrap()).await.unwrap_err().to_string();
        assert!(refused.contains("no loopback address"), "{refused}");
    }
}
