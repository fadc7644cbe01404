//! The first bytes of an HTTP/2 connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// RFC 9113, section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose peer has sent the preface. It was read here, because hyper waits for it without end, and is
/// given to hyper again.
#[derive(Debug)]
pub(super) struct Prefaced<T> {
    /// Bytes of the preface that hyper has yet to read.
    left: &'static [u8],
    inner: T,
}

impl<T: AsyncRead + Unpin> Prefaced<T> {
    /// Reads the preface. Fails where the peer closes, or sends something else. Wants a time limit.
    pub(super) async fn read(mut inner: T) -> io::Result<Self> {
        let mut got = [0; PREFACE.len()];
        inner.read_exact(&mut got).await?;
        if got != *PREFACE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer does not speak HTTP/2"));
        }
        Ok(Self { left: PREFACE, inner })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefaced<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let (now, later) = self.left.split_at(self.left.len().min(buf.remaining()));
        buf.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefaced<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    /// Answers that are ready together shall leave in one write. Where vectored writes are possible, h2 gives each answer of
    /// 256 bytes or more a write of its own, which costs more than all else of a check; else it copies up to 1,024.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_is_read_again() {
        let sent = [PREFACE.as_slice(), b"and more"].concat();
        let mut stream = Prefaced::read(sent.as_slice()).await.unwrap();
        let mut got = Vec::new();
        let mut part = [0; 7];
        loop {
            let n = stream.read(&mut part).await.unwrap();
            if n == 0 {
                break;
            }
            got.extend_from_slice(&part[..n]);
        }
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn other_protocols_are_refused() {
        let http1 = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".as_slice();
        assert_eq!(Prefaced::read(http1).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(Prefaced::read(&PREFACE[..12]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
