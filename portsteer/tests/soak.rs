//! Everything at once: traffic of all kinds, some of it mutated, while policies are applied, tried out and edited, agents are
//! killed, and interfaces flap. At the end every packet is accounted for. Needs root.
//!
//! ```text
//! client ──first cable──▶ uplink ─┐           ┌─▶ the host's stack, directly or by a CPU's queue
//!        ──second cable─▶ second ─┴─portsteer─┼─▶ to-sink ──▶ sink, in a namespace of its own
//!                                             └─▶ nowhere
//! ```
//!
//! Nobody speaks on the cables but the generators: no namespace has an IPv6 address or a neighbour to find. It takes
//! some seconds, or as many minutes as `PORTSTEER_SOAK_MINUTES` says; `PORTSTEER_SOAK_SEED` repeats the choices of
//! a run, though not their timing.

#[path = "soak/account.rs"]
mod account;
#[path = "soak/deeds.rs"]
mod deeds;
#[path = "soak/flaps.rs"]
mod flaps;
#[path = "soak/kills.rs"]
mod kills;
#[path = "soak/meter.rs"]
mod meter;
#[path = "soak/mutation.rs"]
mod mutation;
#[path = "soak/operator.rs"]
mod operator;
#[path = "soak/policies.rs"]
mod policies;
#[path = "soak/second.rs"]
mod second;
#[path = "soak/sink.rs"]
mod sink;
#[path = "soak/traffic.rs"]
mod traffic;

use std::{
    env, fs,
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use portsteer::{
    dataplane::{Instance, Stats, read_stats},
    lab::Namespace,
};
use portsteer_testkit::random::Random;
use portsteer_testkit::{
    agent::{Agent, is_slow, soak_minutes},
    arrivals::Arrivals,
    sandbox::sandbox,
    site::{Site, wait_until},
};

use crate::{
    account::{Account, Counts},
    deeds::Deeds,
    kills::{start_again, state},
    mutation::mutated,
    operator::Operator,
    second::{AtEnds, Second},
    sink::Sink,
    traffic::{Cable, Ledger, Sender, send_until},
};

const INSTANCE: &str = "main";

/// What the account begins with; its lines begin with two blanks.
const ACCOUNT: &str = "account: ";

fn duration() -> Duration {
    let short = if is_slow() { 0.5 } else { 0.2 };
    Duration::from_secs_f64(60.0 * soak_minutes().unwrap_or(short))
}

fn seed() -> u64 {
    let given = env::var("PORTSTEER_SOAK_SEED")
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("PORTSTEER_SOAK_SEED={text}: no seed")));
    given.unwrap_or_else(|| {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(time.subsec_nanos()) << 16 | u64::from(std::process::id()) & 0xffff
    })
}

/// Tells it although the test may pass: not with `eprintln!`, which the test harness keeps to itself.
fn tell(text: &str) {
    // A lost word is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A namespace without IPv6: nobody in it says anything by itself.
fn silent_namespace() -> Namespace {
    let namespace = Namespace::new().expect("a namespace");
    for interface in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        namespace.run(|| fs::write(path, "1")).expect("IPv6 can be switched off");
    }
    namespace
}

/// Ends the others also when this thread panics.
struct OverOnDrop<'a>(&'a AtomicBool);

impl Drop for OverOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_packet_is_accounted_for_whatever_happens() {
    sandbox(soak);
}

fn soak() {
    let seed = seed();
    tell(&format!("soak: PORTSTEER_SOAK_SEED={seed}"));
    let start = Instant::now();
    let random = |sequence| Random::sequence(seed, sequence);
    let site = Site::quiet();
    let sink = Sink::new(&site.host);
    let first_sender = Mutex::new(Some(site.client.run(|| Sender::on(&site.cable.left))));
    let second_sender = Mutex::new(None);
    let mut second = Second::new(&site.client, &site.host, &second_sender);
    let policy = policies::policy(0, &mut random(0));
    let mut agent = Agent::serve(&site.host, INSTANCE, &policy);
    let mut by_first = Arrivals::by(&site.cable.right).expect("a packet socket");
    let mut by_any = Arrivals::anywhere(&site.host).expect("a packet socket");
    let before = AtEnds::of(&site.cable);
    assert_eq!((before, second.counted()), Default::default(), "nobody speaks on the cables");

    let deeds = Deeds::default();
    let (upset_over, traffic_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let operators = [1, 2].map(|_| Operator::new(&site.host, agent.socket(), &deeds));
    let sent = thread::scope(|scope| {
        let generators = [(Cable::First, &first_sender), (Cable::Second, &second_sender)].map(
            |(cable, sender)| {
                let (client, over) = (&site.client, &traffic_over);
                let mut random = random(10 + cable as u64);
                scope.spawn(move || {
                    let _over = OverOnDrop(over);
                    client.run(|| send_until(over, cable, sender, mutated, &mut random))
                })
            },
        );
        let end_traffic = OverOnDrop(&traffic_over);
        let upsets = [
            scope.spawn(|| {
                let _over = OverOnDrop(&upset_over);
                operators[0].work_until(&upset_over, &mut random(20));
            }),
            scope.spawn(|| {
                let _over = OverOnDrop(&upset_over);
                operators[1].work_until(&upset_over, &mut random(23));
            }),
            scope.spawn(|| {
                let _over = OverOnDrop(&upset_over);
                kills::kill_until(&upset_over, &mut agent, &deeds, &mut random(21));
            }),
            scope.spawn(|| {
                let _over = OverOnDrop(&upset_over);
                let (second, sender) = (&mut second, &second_sender);
                flaps::flap_until(&upset_over, second, sender, &sink, &deeds, &mut random(22));
            }),
        ];
        let end_upsets = OverOnDrop(&upset_over);
        let mut seen = Seen::default();
        while start.elapsed() < duration()
            && ![&upset_over, &traffic_over].iter().any(|over| over.load(Ordering::Relaxed))
        {
            thread::sleep(Duration::from_millis(200));
            // Before the kernel's numbers overflow.
            by_first.count();
            by_any.count();
            seen.look(&stats(&site));
        }
        drop(end_upsets);
        for upset in upsets {
            upset.join().expect("all goes on to the end");
        }
        drop(end_traffic);
        generators.map(|generator| generator.join().expect("a generator"))
    });
    let seconds = start.elapsed().as_secs_f64();

    // Another agent from this thread, with which it lives, and the end of a trial.
    agent.kill();
    start_again(&mut agent);
    if state(&agent) == "on trial" {
        // It may be over by now.
        let _ = agent.ask(&["rollback"]);
    }
    wait_until("no policy is on trial", || state(&agent) != "on trial");
    agent.apply(&policy, &[]);
    assert_eq!(state(&agent), "in force", "{}", agent.log());
    let attached = || second.device().is_some_and(|it| it.link().expect("a link").xdp.is_some());
    wait_until("the second interface is attached", attached);

    settle(&site, &second, &sink, &sent[0]);
    let counts = Counts {
        sent,
        ends: [AtEnds::of(&site.cable), second.counted()],
        downs: ["times set down and up", "times removed and made anew"]
            .iter()
            .map(|what| deeds.count("the second interface", what))
            .sum(),
        stats: stats(&site),
        to_stack: [by_first.count(), by_any.count()],
        at_sink: [policies::SINK, policies::OTHER_SINK].map(|number| sink.arrived(number)),
        strayed: sink.strayed(&[policies::SINK, policies::OTHER_SINK]),
        sink_received: sink.received(),
    };
    let account = Account::of(&counts);
    let sent = counts.sent[0].sent.all() + counts.sent[1].sent.all();
    let mutated = counts.sent[0].mutated + counts.sent[1].mutated;
    tell(&format!("{ACCOUNT}{sent} packets in {seconds:.0} s, seed {seed}"));
    tell("  meanwhile");
    tell(&format!("    different frames made by mutation: {mutated}"));
    tell(&format!("    policies in force: {}", counts.stats.policy.generation));
    for line in deeds.lines() {
        tell(&format!("    {line}"));
    }
    tell(account.table.trim_end());
    let wrong = &account.wrong;
    for sum in wrong {
        tell(&format!("  WRONG: {sum}"));
    }
    assert!(wrong.is_empty(), "not every packet is accounted for: {wrong:#?}\n{:?}", counts.stats);
}

/// What listings have shown before.
#[derive(Debug, Default)]
struct Seen(Vec<(String, u64)>);

impl Seen {
    /// No count of what never comes or goes is lower than it was.
    fn look(&mut self, stats: &Stats) {
        let names: Vec<&str> = policies::rules().map(policies::rule_name).collect();
        let rules = stats.rules.iter().filter(|it| names.contains(&it.name.as_str()));
        let mut now: Vec<(String, u64)> =
            rules.map(|it| (format!("rule {}", it.name), it.packets)).collect();
        assert_eq!(now.len(), names.len(), "all policies begin with the same rules: {stats:?}");
        let uplink = stats.interfaces.iter().filter(|it| it.name == "uplink");
        now.extend(uplink.map(|it| ("interface uplink".to_owned(), it.packets)));
        assert_eq!(now.len(), names.len() + 1, "the first interface is attached: {stats:?}");
        for ((what, now), (_, before)) in now.iter().zip(&self.0) {
            assert!(now >= before, "{what} has counted {before} packets, and now {now}");
        }
        self.0 = now;
    }
}

fn stats(site: &Site) -> Stats {
    let instance = Instance::new(INSTANCE).expect("a name");
    site.host.run(|| read_stats(&instance)).expect("stats")
}

/// Waits until nothing moves any more.
fn settle(site: &Site, second: &Second, sink: &Sink, first: &Ledger) {
    let read = || {
        let stats = stats(site);
        (AtEnds::of(&site.cable), second.counted(), sink.received(), stats.reasons, stats.targets)
    };
    let mut before = read();
    wait_until("nothing moves any more", || {
        thread::sleep(Duration::from_millis(100));
        let now = read();
        let is_still = now == before && now.0.received >= first.sent.queued;
        before = now;
        is_still
    });
}
