//! Who is connected to a socket: whoever may be, and no more at a time than the agent has room for.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt as _,
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
use rustix::{fs::FileType, process::geteuid};
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
use crate::directory::{Directory, Others};

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
    /// Where the file is, and its name there.
    directory: Directory,
    name: OsString,
    /// The file's device and number, by which it is told from somebody else's.
    file: (u64, u64),
}

impl Socket {
    /// Listens.
    ///
    /// # Errors
    ///
    /// Another agent listens there, the file cannot be made, or other users may write to its directory.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let no_file = || io::Error::new(io::ErrorKind::InvalidInput, "it is no path of a file");
        let name = address.path.file_name().ok_or_else(no_file)?.to_owned();
        let parent = address.path.parent().ok_or_else(no_file)?;
        let here = Path::new(".");
        let parent = if parent.as_os_str().is_empty() { here } else { parent };
        let directory = Directory::make_without_links(parent, DIRECTORY_MODE, Others::IfSticky)?;
        remove_stale(&directory, &name)?;
        // Bound under another name, so that nobody finds it with other permissions than it is to have.
        let mut new = name.clone();
        new.push(".new");
        remove_stale(&directory, &new)?;
        let listener = UnixListener::bind(directory.path_of(&new))?;
        let finish = || -> io::Result<_> {
            directory.set_access(&new, address.group, address.mode)?;
            let file = identity(&directory, &new)?;
            directory.rename(&new, &name)?;
            Ok(file)
        };
        let file = finish().inspect_err(|_| {
            let _ = directory.remove(&new);
        })?;
        Ok(Self { listener, address: address.clone(), directory, name, file })
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
        if identity(&self.directory, &self.name).is_ok_and(|file| file == self.file) {
            let _ = self.directory.remove(&self.name);
        }
    }
}

/// Of directories that are made for sockets: who may use one is up to its own permissions.
const DIRECTORY_MODE: u32 = 0o755;

fn identity(directory: &Directory, name: &OsStr) -> io::Result<(u64, u64)> {
    let stat = directory.stat(name)?.ok_or(io::ErrorKind::NotFound)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Removes what an agent left that was killed, and nothing else.
fn remove_stale(directory: &Directory, name: &OsStr) -> io::Result<()> {
    let Some(stat) = directory.stat(name)? else { return Ok(()) };
    // The kernel refuses connections to other files in the same words.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        let message = "there is something else, which is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    if !geteuid().is_root() && stat.st_uid != geteuid().as_raw() {
        let message = format!("there is a socket of user {}", stat.st_uid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    match std::os::unix::net::UnixStream::connect(directory.path_of(name)) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent listens there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => directory.remove(name),
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

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub is_root: bool,
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
        let peer = Peer { is_root: stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let busy = Busy::default();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let task = tokio::spawn({
            let (connections, busy) = (self.clone(), busy.clone());
            async move {
                connections.answer(stream, router, busy, peer).await;
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

    async fn answer(&self, stream: UnixStream, router: Router, busy: Busy, peer: Peer) {
        let stream = Arc::new(stream);
        let watched = Watched::new(Arc::clone(&stream), busy.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            // Of a longer one, whoever reads its body says when it is whole.
            if request.body().is_end_stream() {
                busy.begin();
            }
            request.extensions_mut().insert(busy.clone());
            request.extensions_mut().insert(peer);
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

    fn bind(path: PathBuf) -> io::Result<Socket> {
        Socket::bind(&Address { path, mode: 0o600, group: None })
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_socket_has_its_permissions_and_goes_with_the_agent() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b/agent.sock");
        let address = Address { path: path.clone(), mode: 0o640, group: None };
        let socket = Socket::bind(&address).unwrap();
        assert_eq!(
            (mode(&path), fs::read_dir(place.path().join("a/b")).unwrap().count()),
            (0o640, 1)
        );
        assert_eq!(bind(path.clone()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(!path.exists());
        // What was left by one that was killed does not count.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(bind(path).is_ok());
    }

    /// Links, and directories in which other users may put some: root would change what they lead to.
    #[tokio::test]
    async fn nobody_leads_a_socket_elsewhere() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::create_dir(path("real")).unwrap();
        symlink("real", path("link")).unwrap();
        let error = bind(path("link/agent.sock")).unwrap_err();
        assert!(error.to_string().contains("a symbolic link"), "{error}");
        fs::set_permissions(path("real"), fs::Permissions::from_mode(0o777)).unwrap();
        let error = bind(path("real/agent.sock")).unwrap_err();
        assert!(error.to_string().contains("may be written to by other users"), "{error}");
        fs::set_permissions(path("real"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(path("theirs"), "").unwrap();
        fs::set_permissions(path("theirs"), fs::Permissions::from_mode(0o644)).unwrap();
        for name in ["agent.sock", "agent.sock.new"] {
            symlink("../theirs", path("real").join(name)).unwrap();
            let error = bind(path("real/agent.sock")).unwrap_err();
            assert!(error.to_string().contains("which is no socket"), "{error}");
            fs::remove_file(path("real").join(name)).unwrap();
        }
        assert_eq!(mode(&path("theirs")), 0o644);
        assert!(bind(path("real/agent.sock")).is_ok());
    }

    #[test]
    fn groups_have_ids() {
        assert_eq!(group_id("root"), Ok(0));
        assert_eq!(group_id("4711"), Ok(4711));
        assert!(group_id("no-such-group-of-anybody").is_err());
    }
}
