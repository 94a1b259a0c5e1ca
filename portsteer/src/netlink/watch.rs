//! [`Events`] for those who wait for several things at once.

use std::io;

use tokio::io::unix::AsyncFd;

use super::{Events, News};

/// Waits for interfaces or neighbours to change.
#[derive(Debug)]
pub struct Watch(AsyncFd<Events>);

impl Watch {
    /// Starts watching in the network namespace that the calling thread is in. Call it inside a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// If the kernel has no socket to give.
    pub fn start(news: News) -> io::Result<Self> {
        let events = Events::subscribe(news)?;
        // SAFETY: the socket belongs to `events` alone, which moves into the result, never changes
        // it, and closes it only when dropped.
        Ok(Self(unsafe { AsyncFd::register(events)? }))
    }

    /// Waits until something has changed since the last call, or since the start. May be
    /// cancelled without loss.
    ///
    /// # Errors
    ///
    /// If the socket cannot be read, which it always can.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let any = self.0.get_ref().drain()?;
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}
