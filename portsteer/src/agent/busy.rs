//! What a connection is doing: waiting for its answer, or for its client.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Sleep, sleep},
};

use super::server::Room;

/// Whether a connection's request is being answered, so that it is not for somebody else to end it.
#[derive(Debug, Clone)]
pub struct Busy(Arc<Mutex<(State, Room)>>);

#[derive(Debug, Clone, Copy)]
enum State {
    Answering,
    /// Since then, the client has neither sent nor taken anything.
    Still(Instant),
}

impl Default for Busy {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((State::Still(Instant::now()), None))))
    }
}

impl Busy {
    /// The request has come whole.
    pub fn begin(&self) {
        self.set(State::Answering);
    }

    /// The answer is there, and the client may take it.
    pub fn end(&self) {
        self.set(State::Still(Instant::now()));
    }

    /// For how long nothing has moved; None while the request is being answered.
    pub fn still_for(&self) -> Option<Duration> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).0 {
            State::Answering => None,
            State::Still(since) => Some(since.elapsed()),
        }
    }

    /// Keeps what a long answer takes of memory for as long as the connection is there.
    pub fn keep(&self, room: Room) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = room;
    }

    fn note_move(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Still(since) = &mut state.0 {
            *since = Instant::now();
        }
    }

    fn set(&self, state: State) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = state;
    }
}

/// How long a client may take nothing of its answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// A connection of which it is known when something moved last. It fails where the client does not take its
/// answer.
#[derive(Debug)]
pub struct Watched {
    stream: UnixStream,
    busy: Busy,
    /// Until when the client has time, while there is something that it does not take.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub fn new(stream: UnixStream, busy: Busy) -> Self {
        Self { stream, busy, patience: None }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.busy.note_move();
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, bytes) {
            self.patience = None;
            self.busy.note_move();
            return Poll::Ready(written);
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(ANSWER_PATIENCE)));
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
