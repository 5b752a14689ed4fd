//! Metrics over plain HTTP: `/metrics`, and nothing else. Everyone who can connect may read them,
//! so the address must be a loopback address.

use crate::chain;
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Longest head of a request.
const REQUEST_MAX_BYTES: usize = 8192;
/// For a request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before another try, where the descriptors are somebody else's.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most connections at once; the next ones wait.
const CONNECTIONS_MAX: usize = 16;
/// What Prometheus wants to be told.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is no loopback address, so others could read the metrics.
    #[error(
        "serve metrics on {0}: not a loopback address, and metrics have no authentication; use 127.0.0.1, and reach it from elsewhere through ssh or a proxy"
    )]
    Open(SocketAddr),
    /// The kernel refuses to listen on the address.
    #[error("serve metrics on {address}; use another --metrics")]
    Bind {
        /// The address on which metrics were to be served.
        address: SocketAddr,
        /// The kernel's reason.
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

/// Answers with what `text` says, until its future is dropped. An error of `text` is shown with
/// status 503.
pub async fn serve<F, T, E>(listener: TcpListener, text: F)
where
    F: Fn() -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Result<String, E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    let router = Router::new().route("/metrics", get(move || answer(text()))).fallback(elsewhere);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: one of ours has to end first.
                tracing::warn!(error = %chain(&error), "accept a connection for metrics");
                if connections.join_next().await.is_none() {
                    sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        // Closed after each answer: a reader that keeps its connection would keep one of the few
        // places.
        let connection = http1::Builder::new()
            .keep_alive(false)
            .half_close(true)
            .max_buf_size(REQUEST_MAX_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            let _place = place;
            match timeout(PATIENCE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(error = %chain(&error), "serve metrics"),
                Err(_) => tracing::debug!("a reader of metrics was too slow"),
            }
        });
    }
}

async fn answer<T, E>(text: T) -> Response
where
    T: Future<Output = Result<String, E>>,
    E: std::error::Error,
{
    match text.await {
        Ok(body) => ([(CONTENT_TYPE, OPENMETRICS)], body).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", chain(&error))).into_response(),
    }
}

async fn elsewhere() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "metrics are at /metrics\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    async fn ask(text: &str) -> String {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server =
            tokio::spawn(serve(listener, || async { Ok::<_, Infallible>("a 1\n# EOF\n".to_owned()) }));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes before all was read may reset.
        if let Err(error) = stream.read_to_end(&mut answer).await {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        server.abort();
        String::from_utf8(answer).unwrap().to_lowercase()
    }

    #[tokio::test]
    async fn metrics_are_where_prometheus_looks() {
        let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("http/1.1 200 ok\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\na 1\n# eof\n"), "{answer}");
        for header in [
            "content-length: 10\r\n",
            "content-type: application/openmetrics-text; ",
            "connection: close\r\n",
        ] {
            assert!(answer.contains(header), "{answer}");
        }
        let head = ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(head.starts_with("http/1.1 200 ok\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let answer = ask("GET / HTTP/1.1\r\n\r\n").await;
        assert!(
            answer.starts_with("http/1.1 404 ") && answer.ends_with("metrics are at /metrics\n"),
            "{answer}"
        );
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("http/1.1 405 "));
        assert!(ask("\u{1}\u{2}\n\n").await.starts_with("http/1.1 400 "));
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(10_000));
        let answer = ask(&long).await;
        assert!(answer.is_empty() || answer.starts_with("http/1.1 431 "), "{answer}");
    }

    #[tokio::test]
    async fn what_cannot_be_counted_now_is_unavailable() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let server = tokio::spawn(serve(listener, || async {
            Err::<String, _>(io::Error::other("the ledger has ended"))
        }));
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("the ledger has ended\n"),
            "{answer}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_says_nothing_loses_its_connection() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let server = tokio::spawn(serve(listener, || async { Ok::<_, Infallible>(String::new()) }));
        stream.write_all(b"GET /metr").await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        server.abort();
    }

    #[tokio::test]
    async fn only_this_host_reads_them() {
        let refused = listen("0.0.0.0:0".parse().unwrap()).await.unwrap_err().to_string();
        assert!(refused.contains("not a loopback address"), "{refused}");
    }
}
