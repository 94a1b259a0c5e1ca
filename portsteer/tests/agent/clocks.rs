//! Clocks that jump. The machine's own is only set where the machine is the test's own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portsteer::lab::set_clock;
use portsteer_testkit::{
    agent::{Agent, is_slow},
    flood::{assert_all_judged, under_flood},
    sandbox::{sandbox, skip},
    site::{Site, wait_until},
};

use crate::{INSTANCE, generation, is_open, policy, status};

const YEAR: i64 = 365 * 86_400;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs() as i64
}

#[test]
fn a_trial_lasts_as_long_as_it_is_to_whatever_the_clock_says() {
    if !is_slow() {
        return skip("it sets the machine's clock: `cargo xtask vm` tries it");
    }
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy(&["uplink"], 2000));
        let (_, account) = under_flood(&site, || {
            for years in [2, -4, 2] {
                let seconds = 20;
                let start = Instant::now();
                agent.apply(&policy(&["uplink"], 3000), &["--confirm", &format!("{seconds}s")]);
                set_clock(now() + years * YEAR).expect("a clock that can be set");
                let on_trial = status(&agent)["state"] == "on trial";
                assert!(on_trial || start.elapsed() >= Duration::from_secs(seconds));
                agent.ask(&["status"]).expect(0, &["default pass, ", " for "]);
                wait_until("the policy before is back", || generation(&site) == 1);
                assert!(start.elapsed() >= Duration::from_secs(seconds), "{:?}", start.elapsed());
                wait_until("the agent knows", || status(&agent)["state"] == "in force");
            }
        });
        assert_all_judged(&site, INSTANCE, "flooded", account.received);
        assert!(!is_open(&site, 2000));
    });
}
