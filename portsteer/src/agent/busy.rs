//! What a connection is doing: waiting for its answer, or for its client, and whether that is still there.

use std::{
    future::{self, Future as _},
    io,
    os::{fd::AsFd as _, unix::net},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
    time::{Sleep, sleep},
};

use super::server::Room;

/// Whether a connection's request is being answered, so that it is not for somebody else to end it.
#[derive(Debug, Clone)]
pub struct Busy(Arc<Mutex<Doing>>);

#[derive(Debug)]
struct Doing {
    state: State,
    /// What a long answer takes of memory.
    room: Room,
    /// Until when the client has to have taken its answer.
    deadline: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Answering,
    /// Since then, the client has neither sent nor taken anything.
    Still(Instant),
}

impl Default for Busy {
    fn default() -> Self {
        let state = State::Still(Instant::now());
        Self(Arc::new(Mutex::new(Doing { state, room: None, deadline: None })))
    }
}

impl Busy {
    /// The request has come whole.
    pub fn begin(&self) {
        let mut doing = self.doing();
        (doing.state, doing.deadline) = (State::Answering, None);
    }

    /// The answer is there, and the client may take it within this time.
    pub fn end(&self, time: Duration) {
        let mut doing = self.doing();
        let now = Instant::now();
        (doing.state, doing.deadline) = (State::Still(now), now.checked_add(time));
    }

    /// For how long nothing has moved; None while the request is being answered.
    pub fn still_for(&self) -> Option<Duration> {
        match self.doing().state {
            State::Answering => None,
            State::Still(since) => Some(since.elapsed()),
        }
    }

    /// Keeps what a long answer takes of memory for as long as the connection is there.
    pub fn keep(&self, room: Room) {
        self.doing().room = room;
    }

    fn note_move(&self) {
        if let State::Still(since) = &mut self.doing().state {
            *since = Instant::now();
        }
    }

    /// For how long the client may take nothing from now on.
    fn patience(&self) -> Duration {
        let left = self.doing().deadline.map(|at| at.saturating_duration_since(Instant::now()));
        left.map_or(ANSWER_PATIENCE, |left| left.min(ANSWER_PATIENCE))
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a client may take nothing of its answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// A connection of which it is known when something moved last. It fails where the client does not take its
/// answer.
#[derive(Debug)]
pub struct Watched {
    stream: Arc<UnixStream>,
    busy: Busy,
    /// Until when the client has time, while there is something that it does not take.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub fn new(stream: Arc<UnixStream>, busy: Busy) -> Self {
        Self { stream, busy, patience: None }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Ok(len) => buffer.advance(len),
                // The kernel's word is the last one, and the next time it is waited for.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            self.busy.note_move();
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        while self.stream.poll_write_ready(context)?.is_ready() {
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.patience = None;
                    self.busy.note_move();
                    return Poll::Ready(written);
                }
            }
        }
        let time = self.busy.patience();
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(time)));
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The connection is closed as a whole, right afterwards.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Waits until the client is gone: it has closed the connection, or was ended. One that has closed its own half
/// alone is still there, and reads.
pub async fn hung_up(stream: &UnixStream) {
    // A second registration, which is made to forget that it may be written.
    let watched = stream.as_fd().try_clone_to_owned().map(net::UnixStream::from);
    // Without a descriptor for it, nothing is known of the client until it is written to.
    let Ok(watched) = watched.and_then(UnixStream::from_std) else {
        return future::pending().await;
    };
    loop {
        match watched.ready(Interest::WRITABLE).await {
            // EPOLLHUP: both halves are closed (poll(2)).
            Ok(ready) if ready.is_write_closed() => return,
            // The next event wakes it.
            Ok(_) => {
                let forget = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = watched.try_io(Interest::WRITABLE, forget);
            }
            Err(_) => return future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use tokio::time::timeout;

    use super::*;

    /// After this time, a test hangs.
    const HANG: Duration = Duration::from_secs(20);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(HANG, test).await.expect("it hangs") });
    }

    fn pair() -> (UnixStream, std::os::unix::net::UnixStream) {
        let (ours, client) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (UnixStream::from_std(ours).unwrap(), client)
    }

    #[test]
    fn a_client_that_closes_is_gone_and_one_that_closes_its_half_is_not() {
        run(async {
            let (stream, client) = pair();
            let stream = Arc::new(stream);
            let mut gone = tokio::spawn({
                let stream = Arc::clone(&stream);
                async move { hung_up(&stream).await }
            });
            for step in 0..3 {
                match step {
                    0 => {}
                    1 => drop(stream.try_write(&[0; 100])),
                    _ => client.shutdown(Shutdown::Write).unwrap(),
                }
                let waited = timeout(Duration::from_millis(50), &mut gone).await;
                assert!(waited.is_err(), "step {step}: it is there");
                // And it can still be written to: this does not take the connection's own events away.
                stream.writable().await.unwrap();
                assert!(stream.try_write(b"x").is_ok());
            }
            drop(client);
            gone.await.unwrap();
        });
    }

    #[test]
    fn a_client_has_so_long_for_its_answer_and_no_longer() {
        run(async {
            let (stream, _client) = pair();
            let busy = Busy::default();
            let mut watched = Watched::new(Arc::new(stream), busy.clone());
            busy.end(Duration::ZERO);
            let failed = loop {
                let bytes = [0; 64 << 10];
                let written = future::poll_fn(|it| Pin::new(&mut watched).poll_write(it, &bytes));
                if let Err(error) = written.await {
                    break error;
                }
            };
            assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        });
    }
}
