//! The agent's threads: few, started before they are needed, and deaf to signals, which are for the main one.
//! The kernel answers `BPF_PROG_LOAD` and others with EAGAIN where a signal interrupts them.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sys::signal::SigSet;
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::spawn_blocking,
};

/// How many requests are looked into at the same time: each takes a thread.
const MOST_BLOCKING: usize = 8;

/// How long a thread is kept for the next request. As long as there is one, those that cannot be had are waited for.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What the agent runs in.
///
/// # Errors
///
/// The kernel has no descriptors to give.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MOST_BLOCKING)
        .thread_keep_alive(FOR_EVER)
        .thread_name("portsteer-look")
        .on_thread_start(hear_no_signals)
        .build()
}

/// Starts the first of the threads that requests are looked into by.
///
/// # Errors
///
/// There is no thread to be had.
pub async fn begin_to_look() -> io::Result<()> {
    // The runtime would panic.
    let trial = thread::Builder::new().spawn(|| {})?;
    let _ = trial.join();
    // It does nothing that could fail.
    let _ = spawn_blocking(|| {}).await;
    Ok(())
}

fn hear_no_signals() {
    // Fails for no set of signals that there is.
    let _ = SigSet::all().thread_block();
}

type Work = Box<dyn FnOnce() + Send>;

/// A thread that does one thing after the other, for as long as this is there.
#[derive(Debug)]
pub struct Worker(mpsc::Sender<Work>);

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// There is none to be had.
    pub fn start() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Work>();
        thread::Builder::new().name("portsteer-work".to_owned()).spawn(move || {
            hear_no_signals();
            receiver.into_iter().for_each(|work| work());
        })?;
        Ok(Self(sender))
    }

    /// Has something done, once everything before is. A panic comes instead of the result.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<thread::Result<T>> {
        let (sender, receiver) = oneshot::channel();
        let work = Box::new(move || {
            // Whoever asked may be gone.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
        });
        // The thread ends only with this.
        let _ = self.0.send(work);
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap().to_owned()
    }

    /// All that can be blocked: 64 signals, less SIGKILL, SIGSTOP and the two that the C library keeps.
    const ALL: &str = "fffffffe7ffbfeff";

    #[test]
    fn threads_that_work_hear_no_signals() {
        let runtime = runtime().unwrap();
        let before = blocked();
        runtime.block_on(async {
            begin_to_look().await.unwrap();
            assert_eq!(spawn_blocking(blocked).await.unwrap(), ALL);
            let worker = Worker::start().unwrap();
            assert_eq!(worker.run(blocked).await.unwrap().unwrap(), ALL);
        });
        assert_eq!(blocked(), before, "the main thread hears them as before");
    }

    #[test]
    fn a_panic_is_told_and_the_thread_goes_on() {
        runtime().unwrap().block_on(async {
            let worker = Worker::start().unwrap();
            assert!(worker.run(|| panic!("on purpose")).await.unwrap().is_err());
            assert_eq!(worker.run(|| 7).await.unwrap().unwrap(), 7);
        });
    }
}
