//! Who is connected to a socket: whoever may be, and no more at a time than the agent has room for.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, header},
    response::{IntoResponse as _, Response},
};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::AbortHandle,
    time::sleep,
};
use tower::ServiceExt as _;

use super::{
    busy::{Busy, Watched, hung_up},
    server::no_room,
};

/// How many are connected at a time at most. Whoever has stood still for longest makes room for a newcomer.
const MOST: usize = 64;

/// For how long everybody may stand still before that: whoever has come in a crowd is to be heard as well.
const GRACE: Duration = Duration::from_millis(100);

/// How much of long answers waits for clients to take it, in MiB.
const ROOM: usize = 128;

/// Answers up to this length need no room to be found for them.
const SHORT_ANSWER: u64 = 64 << 10;

/// How long a client may take for its answer beside what its length takes.
const TAKING_PATIENCE: Duration = Duration::from_secs(60);

/// How many bytes of its answer a client takes in a second at least, on average. At more than a byte now and then,
/// it cannot hold the room of long answers for ever.
const SLOWEST: u64 = 256 << 10;

/// How often it is looked whether somebody has.
const CROWDED: Duration = Duration::from_millis(10);

/// How long a client may take to send a request's header, and how long it may be connected and ask nothing.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);

/// A socket to be, and who may use it.
#[derive(Debug, Clone)]
pub struct Address {
    pub path: PathBuf,
    pub mode: u32,
    /// The id of the group that may use it.
    pub group: Option<u32>,
}

/// A socket that is listened at. The file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    address: Address,
    /// The file's device and number, by which it is told from somebody else's.
    file: (u64, u64),
}

impl Socket {
    /// Listens.
    ///
    /// # Errors
    ///
    /// Somebody else listens there, or the file cannot be made.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let path = &address.path;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        remove_stale(path)?;
        // Bound under another name, so that nobody finds it with other permissions than it is to have.
        let new = path.with_added_extension("new");
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        let finish = || -> io::Result<_> {
            chown(&new, None, address.group)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(address.mode))?;
            let file = identity(&new)?;
            fs::rename(&new, path)?;
            Ok(file)
        };
        let file = finish().inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })?;
        Ok(Self { listener, address: address.clone(), file })
    }

    /// Answers whoever connects, for ever.
    pub async fn serve(&self, router: Router) {
        let connections = Connections::default();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if self.may_use(&stream) {
                        connections.make_room().await;
                        connections.begin(stream, router.clone());
                    }
                }
                // Out of descriptors, most likely.
                Err(_) => {
                    connections.end_stillest();
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Root and the agent's own user; others only if a group or a mode was set for them, and then the file's
    /// permissions have let them in.
    fn may_use(&self, stream: &UnixStream) -> bool {
        let Ok(peer) = stream.peer_cred() else { return false };
        let own = fs::metadata("/proc/self").map(|it| it.uid());
        let is_open = self.address.mode & 0o066 != 0;
        peer.uid() == 0 || own.is_ok_and(|own| peer.uid() == own) || is_open
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever comes next removes it otherwise.
        if identity(&self.address.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.address.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|it| (it.dev(), it.ino()))
}

/// Removes what an agent left that was killed, and nothing else.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    // The kernel refuses connections to other files in the same words.
    if !metadata.file_type().is_socket() {
        let message = "there is something else, which is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent listens there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// The id of a group.
///
/// # Errors
///
/// There is none of this name, in words.
pub fn group_id(name: &str) -> Result<u32, String> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let groups = fs::read_to_string(Path::new("/etc/group"))
        .map_err(|error| format!("/etc/group: {error}"))?;
    let id = |line: &str| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    };
    groups.lines().find_map(id).ok_or_else(|| format!("there is no group `{name}`"))
}

/// Who is connected.
#[derive(Debug, Clone)]
struct Connections {
    /// The oldest first.
    all: Arc<Mutex<Vec<Connection>>>,
    next: Arc<AtomicU64>,
    /// What long answers may take, in MiB.
    room: Arc<Semaphore>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { all: Arc::default(), next: Arc::default(), room: Arc::new(Semaphore::new(ROOM)) }
    }
}

#[derive(Debug)]
struct Connection {
    number: u64,
    busy: Busy,
    task: AbortHandle,
}

impl Connections {
    /// Waits until one more may be connected.
    async fn make_room(&self) {
        let is_full = || self.all.lock().unwrap_or_else(PoisonError::into_inner).len() >= MOST;
        while is_full() && !self.end_stillest() {
            sleep(CROWDED).await;
        }
    }

    fn begin(&self, stream: UnixStream, router: Router) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let busy = Busy::default();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let task = tokio::spawn({
            let (connections, busy) = (self.clone(), busy.clone());
            async move {
                connections.answer(stream, router, busy).await;
                connections.forget(number);
            }
        });
        all.push(Connection { number, busy, task: task.abort_handle() });
    }

    fn forget(&self, number: u64) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|connection| connection.number != number);
    }

    /// Ends the connection that has stood still for longest, of those that are not being answered.
    fn end_stillest(&self) -> bool {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let still = all.iter().enumerate().filter_map(|(index, connection)| {
            connection.busy.still_for().filter(|&time| time >= GRACE).map(|time| (time, index))
        });
        let Some((_, index)) = still.max() else { return false };
        all.remove(index).task.abort();
        true
    }

    /// Lets an answer wait for its client if there is room for it.
    fn admit(&self, mut answer: Response, busy: &Busy) -> Response {
        let len = answer.body().size_hint().lower();
        busy.end(TAKING_PATIENCE + Duration::from_secs(len / SLOWEST));
        if len <= SHORT_ANSWER {
            return answer;
        }
        let needed = u32::try_from(len.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let needed = needed.min(ROOM as u32);
        match Arc::clone(&self.room).try_acquire_many_owned(needed) {
            Ok(room) => {
                busy.keep(Some(room));
                // Which gives the room back.
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                answer
            }
            Err(_) => no_room("answers").into_response(),
        }
    }

    async fn answer(&self, stream: UnixStream, router: Router, busy: Busy) {
        let stream = Arc::new(stream);
        let watched = Watched::new(Arc::clone(&stream), busy.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            // Of a longer one, whoever reads its body says when it is whole.
            if request.body().is_end_stream() {
                busy.begin();
            }
            request.extensions_mut().insert(busy.clone());
            let (router, busy, connections) = (router.clone(), busy.clone(), self.clone());
            let stream = Arc::clone(&stream);
            async move {
                let answer = tokio::select! {
                    // What can be answered at once is.
                    biased;
                    answer = router.oneshot(request.map(Body::new)) => answer,
                    // With the client go its places in all queues.
                    () = hung_up(&stream) => return Err(io::ErrorKind::BrokenPipe.into()),
                };
                let Ok(answer) = answer;
                Ok::<_, io::Error>(connections.admit(answer, &busy))
            }
        });
        // Whatever the client did wrong, it is gone.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            // Who has said all there is to say may close that half (`nc -N`), and still be waiting for the answer.
            .half_close(true)
            .header_read_timeout(HEADER_PATIENCE)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(watched), service)
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_ids() {
        assert_eq!(group_id("root"), Ok(0));
        assert_eq!(group_id("4711"), Ok(4711));
        assert!(group_id("no-such-group-of-anybody").is_err());
    }
}
