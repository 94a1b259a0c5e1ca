//! How often is looked at what others can change as often as they like.

use tokio::time::{Duration, Instant, sleep_until};

/// After a look, this many times as long as it took passes before the next one: looking takes a twentieth of
/// one CPU at most.
const SHARE: u32 = 19;

/// The shortest time between two looks.
const LEAST: Duration = Duration::from_millis(50);

/// The longest one.
const MOST: Duration = Duration::from_secs(2);

/// When the next look is due. What happens until then is seen by one look.
#[derive(Debug)]
pub struct Pace {
    next: Instant,
}

impl Pace {
    /// The first look is due at once.
    pub fn new() -> Self {
        Self { next: Instant::now() }
    }

    /// Waits until the next look is due.
    pub async fn due(&self) {
        sleep_until(self.next).await;
    }

    /// A look that began then is over now.
    pub fn note_look(&mut self, began: Instant) {
        let now = Instant::now();
        self.next = now + pause(now - began);
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
