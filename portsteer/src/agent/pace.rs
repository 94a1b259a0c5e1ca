//! How often is looked at what others can change as often as they like.

use std::io;

use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::netlink::{News, Watch};

/// After a look, this many times as long as it took passes before the next one: looking takes a twentieth of
/// one CPU at most.
const SHARE: u32 = 19;

/// The shortest time between two looks.
const LEAST: Duration = Duration::from_millis(50);

/// The longest one.
const MOST: Duration = Duration::from_secs(2);

/// How long is waited where the kernel has no socket to give. It is looked at by the clock, too.
const WITHOUT_SOCKET: Duration = Duration::from_secs(1);

/// Something that is looked at after it has changed. What happens until the next look is due is seen by that one,
/// and does not even wake the agent.
#[derive(Debug)]
pub struct Followed {
    news: News,
    /// None until the next look is due.
    watch: Option<Watch>,
    due: Instant,
}

impl Followed {
    /// The first look is due at once.
    pub fn new(news: News) -> Self {
        Self { news, watch: None, due: Instant::now() }
    }

    /// Waits until there is something to look at. May be cancelled without loss.
    pub async fn changed(&mut self) {
        if let Some(watch) = &self.watch {
            // It can always be read; where it cannot, another one is as good.
            let _: io::Result<()> = watch.changed().await;
            self.watch = None;
        }
        sleep_until(self.due).await;
        // The look comes after this, and misses nothing.
        while self.watch.is_none() {
            match Watch::start(self.news) {
                Ok(watch) => self.watch = Some(watch),
                Err(_) => sleep(WITHOUT_SOCKET).await,
            }
        }
    }

    /// A look that began then is over now.
    pub fn note_look(&mut self, began: Instant) {
        let now = Instant::now();
        self.due = now + pause(now - began);
    }
}

fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_takes_a_small_share_of_the_time() {
        let micros = Duration::from_micros;
        assert_eq!(pause(micros(0)), LEAST);
        for took in [1_000, 10_000, 100_000].map(micros) {
            assert!(took * 20 <= took + pause(took), "{took:?}");
        }
        assert_eq!(pause(Duration::from_secs(60)), MOST);
    }
}
