//! Looks at what is in force. Each socket has turns of its own for them, so that the clients of one never keep those
//! of the other waiting, and all who ask for the same share one look.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::spawn_blocking,
    time::sleep_until,
};

use super::conditions::Tag;
use crate::api::Refusal;

/// What a look has found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The answer's JSON. Clients that share a look share its bytes.
    pub body: Result<Bytes, Refusal>,
    /// Of the policy that was in force when the look began: a change since then does not hold for it.
    pub tag: Option<Tag>,
}

impl Found {
    fn failed() -> Self {
        Self { body: Err(Refusal::refused("the agent could not answer")), tag: None }
    }
}

/// Who may look, and when.
#[derive(Debug)]
pub struct Turns {
    permits: Arc<Semaphore>,
    /// Until when there is a rest, where looks are followed by one.
    rest: Option<Mutex<Instant>>,
}

impl Turns {
    /// So many looks at the same time.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { permits: Arc::new(Semaphore::new(count)), rest: None })
    }

    /// One look at a time, and after it a rest that is as long as it was: however many ask, looks take half of one
    /// core at most.
    pub fn with_rests() -> Arc<Self> {
        let rest = Some(Mutex::new(Instant::now()));
        Arc::new(Self { permits: Arc::new(Semaphore::new(1)), rest })
    }

    async fn take(self: &Arc<Self>) -> Turn {
        // Never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        if let Some(rest) = &self.rest {
            let until = *rest.lock().unwrap_or_else(PoisonError::into_inner);
            sleep_until(until.into()).await;
        }
        Turn { turns: Arc::clone(self), begun: Instant::now(), _permit: permit }
    }

    /// Looks in a thread of its own, once it has its turn. A client that is gone waits for none; a look that has
    /// begun goes on to its end, and has its turn until then.
    pub async fn look(self: &Arc<Self>, work: impl FnOnce() -> Found + Send + 'static) -> Found {
        let turn = self.take().await;
        in_thread(turn, work).await
    }
}

/// One look's.
#[derive(Debug)]
struct Turn {
    turns: Arc<Turns>,
    begun: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The longest rest: a look that stood still has taken nothing.
const LONGEST_REST: Duration = Duration::from_secs(5);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(rest) = &self.turns.rest {
            let until = Instant::now() + self.begun.elapsed().min(LONGEST_REST);
            *rest.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
    }
}

async fn in_thread(turn: Turn, work: impl FnOnce() -> Found + Send + 'static) -> Found {
    let look = move || {
        let _turn = turn;
        work()
    };
    spawn_blocking(look).await.unwrap_or_else(|_| Found::failed())
}

/// A look that all who wait for it share. Each client gets what was found by a look that began after it had asked,
/// so that nothing is ever older than the question.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    turns: Arc<Turns>,
    work: Box<dyn Fn() -> Found + Send + Sync>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// For the next look.
    clients: Vec<oneshot::Sender<Found>>,
    /// Whether there is a task that looks for them.
    is_served: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Shared").field(&self.0.waiting).finish()
    }
}

impl Shared {
    pub fn new(turns: Arc<Turns>, work: impl Fn() -> Found + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { turns, work: Box::new(work), waiting: Mutex::default() }))
    }

    /// What the next look finds.
    pub async fn look(&self) -> Found {
        let (sender, found) = oneshot::channel();
        let is_served = {
            let mut waiting = self.0.waiting();
            // Those that are gone do not pile up.
            waiting.clients.retain(|client| !client.is_closed());
            waiting.clients.push(sender);
            std::mem::replace(&mut waiting.is_served, true)
        };
        if !is_served {
            tokio::spawn(serve(Arc::clone(&self.0)));
        }
        found.await.unwrap_or_else(|_| Found::failed())
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who wait now; with none, the task ends that serves them.
    fn is_wanted(&self) -> bool {
        let mut waiting = self.waiting();
        waiting.clients.retain(|client| !client.is_closed());
        waiting.is_served = !waiting.clients.is_empty();
        waiting.is_served
    }
}

/// Looks for as long as there are clients that wait.
async fn serve(inner: Arc<Inner>) {
    while inner.is_wanted() {
        let turn = inner.turns.take().await;
        let mut clients = std::mem::take(&mut inner.waiting().clients);
        clients.retain(|client| !client.is_closed());
        if clients.is_empty() {
            continue;
        }
        let found = in_thread(turn, {
            let inner = Arc::clone(&inner);
            move || (inner.work)()
        });
        let found = found.await;
        for client in clients {
            // It may be gone.
            let _ = client.send(found.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use tokio::{
        task::{JoinHandle, JoinSet, yield_now},
        time::timeout,
    };

    use super::*;

    /// Looks that are counted, and of which each waits until it may end.
    #[derive(Clone)]
    struct Counted {
        begun: Arc<AtomicUsize>,
        may_end: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    impl Counted {
        fn new() -> (Self, mpsc::Sender<()>) {
            let (end, may_end) = mpsc::channel();
            (Self { begun: Arc::default(), may_end: Arc::new(Mutex::new(may_end)) }, end)
        }

        fn begun(&self) -> usize {
            self.begun.load(Ordering::SeqCst)
        }

        /// Finds the look's own number.
        fn look(&self) -> Found {
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let _ = self.may_end.lock().unwrap().recv();
            Found { body: Ok(Bytes::from(number.to_string())), tag: None }
        }

        fn shared(&self, turns: &Arc<Turns>) -> Shared {
            let counted = self.clone();
            Shared::new(Arc::clone(turns), move || counted.look())
        }

        async fn wait_until_begun(&self, count: usize) {
            let begun = async {
                while self.begun() < count {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(HANG, begun).await.expect("a look begins");
        }
    }

    /// After this time, a test hangs.
    const HANG: Duration = Duration::from_secs(30);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { timeout(HANG, test).await.expect("it hangs") });
        runtime.shutdown_background();
    }

    fn ask(shared: &Shared) -> JoinHandle<usize> {
        let shared = shared.clone();
        tokio::spawn(async move { number(&shared.look().await) })
    }

    fn number(found: &Found) -> usize {
        let body = found.body.as_ref().expect("an answer");
        std::str::from_utf8(body).unwrap().parse().unwrap()
    }

    async fn settle() {
        for _ in 0..1_000 {
            yield_now().await;
        }
    }

    #[test]
    fn clients_that_wait_share_a_look_that_began_after_they_asked() {
        run(async {
            let (counted, end) = Counted::new();
            let shared = counted.shared(&Turns::new(1));
            let first = ask(&shared);
            counted.wait_until_begun(1).await;
            // The look that is under way is too old for these.
            let mut later = JoinSet::new();
            for _ in 0..100 {
                let shared = shared.clone();
                later.spawn(async move { number(&shared.look().await) });
            }
            settle().await;
            assert_eq!(counted.begun(), 1, "one at a time");
            end.send(()).unwrap();
            assert_eq!(first.await.unwrap(), 1);
            end.send(()).unwrap();
            let numbers = later.join_all().await;
            assert!(numbers.iter().all(|&number| number == 2), "{numbers:?}");
            assert_eq!(counted.begun(), 2);
        });
    }

    #[test]
    fn a_hundred_readers_of_one_socket_take_no_turn_of_the_other() {
        run(async {
            let (watched, end_watched) = Counted::new();
            let monitor = Turns::with_rests();
            let (status, stats) = (watched.shared(&monitor), watched.shared(&monitor));
            for reader in 0..100 {
                let shared = if reader % 2 == 0 { status.clone() } else { stats.clone() };
                tokio::spawn(async move {
                    loop {
                        shared.look().await;
                    }
                });
            }
            watched.wait_until_begun(1).await;
            settle().await;
            let (operated, end_operated) = Counted::new();
            let control = operated.shared(&Turns::new(1));
            for round in 1..=20 {
                // Not one look of the monitor's ends meanwhile.
                let before = watched.begun();
                end_operated.send(()).unwrap();
                assert_eq!(number(&control.look().await), round, "its own look, and no other's");
                assert_eq!(watched.begun(), before);
                // And between two of the operator's, there is one of the monitor's, however many want it.
                end_watched.send(()).unwrap();
                watched.wait_until_begun(before + 1).await;
                assert_eq!(watched.begun(), before + 1);
            }
            drop(end_watched);
        });
    }

    #[test]
    fn a_client_that_is_gone_costs_no_look() {
        run(async {
            let (counted, end) = Counted::new();
            let turns = Turns::new(1);
            let shared = counted.shared(&turns);
            let first = ask(&shared);
            counted.wait_until_begun(1).await;
            for _ in 0..100 {
                let waits = ask(&shared);
                let single = tokio::spawn({
                    let (turns, counted) = (Arc::clone(&turns), counted.clone());
                    async move { turns.look(move || counted.look()).await }
                });
                settle().await;
                waits.abort();
                single.abort();
            }
            settle().await;
            end.send(()).unwrap();
            assert_eq!(first.await.unwrap(), 1);
            settle().await;
            // Whoever comes next gets the very next look.
            end.send(()).unwrap();
            assert_eq!(ask(&shared).await.unwrap(), 2);
        });
    }

    #[test]
    fn a_look_whose_client_is_gone_has_its_turn_to_its_end() {
        run(async {
            let (counted, end) = Counted::new();
            let turns = Turns::new(1);
            let look = |turns: &Arc<Turns>| {
                let (turns, counted) = (Arc::clone(turns), counted.clone());
                tokio::spawn(async move { number(&turns.look(move || counted.look()).await) })
            };
            let gone = look(&turns);
            counted.wait_until_begun(1).await;
            gone.abort();
            settle().await;
            assert!(gone.is_finished());
            assert_eq!(turns.permits.available_permits(), 0, "threads would pile up");
            let next = look(&turns);
            end.send(()).unwrap();
            end.send(()).unwrap();
            assert_eq!(next.await.unwrap(), 2);
        });
    }

    #[test]
    fn a_look_that_fails_is_said_to_have_failed() {
        run(async {
            let shared = Shared::new(Turns::new(1), || panic!("on purpose"));
            assert!(shared.look().await.body.is_err());
            assert!(shared.look().await.body.is_err(), "once more");
        });
    }
}
