//! What packets notice while policies are swapped and sets are edited, as often as commands can: how many come
//! through, beside how many do while nobody does anything, and whether any is lost. Where there are two CPUs, the
//! sender, whose CPU judges the packets, has one of them, and the agent and the commands have the other.

use std::{
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use portsteer::{
    dataplane::online_cpus,
    lab::{self, ethtool::Offload},
};
use portsteer_testkit::{
    agent::{Agent, Stats},
    sandbox::sandbox,
    site::{Site, wait_until},
};
use serde_json::json;

use crate::{
    Measured, PORT, Report, Result, Rounds,
    commands::{self, INSTANCE},
    contained, contestants,
    family::Family,
    flood::Flood,
    policies::{Blocklist, DROP, Mixed, PolicyFile, dropped_ports, ports, ports_of},
    statistics::{median, spread},
};

const INTERFACE: &str = "uplink";
const ROUNDS: usize = 15;
/// How long packets come in a round while nothing is done, and how long at least while something is.
const IDLE: Duration = Duration::from_millis(250);
const BUSY: Duration = Duration::from_millis(500);
const PREFIXES: usize = 1_000_000;
const CHANGED: usize = 1_000;

/// What can be done under packets.
const APPLY_PORTS: &str = "portsteer apply, 1,000 rules by port";
const APPLY_MIXED: &str = "portsteer apply, 10,000 mixed rules";
const EDIT_SET: &str = "portsteer set add and remove, 1,000 of 1,000,000 addresses";
const NFT_RULES: &str = "nft -f, 1,000 rules in a row";
const NFT_SET: &str = "nft add and delete element, 1,000 of 1,000,000 addresses";

pub struct Swaps {
    rows: Vec<Row>,
    absent: Vec<String>,
}

struct Row {
    name: &'static str,
    /// One value per round: Mpps.
    idle: Vec<f64>,
    busy: Vec<f64>,
    ratios: Vec<f64>,
    /// One value per command: milliseconds.
    commands: Vec<f64>,
    sent: u64,
    /// Those of them for which the queue had no room, while nothing was done and while something was.
    overrun: [u64; 2],
}

impl Swaps {
    pub fn of_portsteer() -> Self {
        Self::with(&[APPLY_PORTS, APPLY_MIXED, EDIT_SET])
    }

    pub fn of_nftables() -> Self {
        Self::with(&[NFT_RULES, NFT_SET])
    }

    fn with(names: &[&'static str]) -> Self {
        let row = |&name| Row {
            name,
            idle: Vec::new(),
            busy: Vec::new(),
            ratios: Vec::new(),
            commands: Vec::new(),
            sent: 0,
            overrun: [0; 2],
        };
        Self { rows: names.iter().map(row).collect(), absent: Vec::new() }
    }
}

impl Measured for Swaps {
    fn name(&self) -> &'static str {
        "swap"
    }

    fn rows(&self) -> Vec<String> {
        self.rows.iter().map(|row| row.name.to_owned()).collect()
    }

    fn keep(&mut self, wanted: &dyn Fn(&str) -> bool) {
        self.rows.retain(|row| wanted(row.name));
    }

    /// All at once, the first time.
    fn batch(&mut self, number: usize, _rounds: &Rounds) -> Result<()> {
        if number > 0 {
            return Ok(());
        }
        for row in &mut self.rows {
            let mut outcome = Ok(());
            let contained = contained(|| {
                sandbox(|| outcome = row.measure());
                Ok(())
            });
            if let Err(error) = contained.and(outcome) {
                self.absent.push(format!("{}: {error}", row.name));
            }
        }
        Ok(())
    }

    fn reports(&self) -> Result<Vec<Report>> {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| !row.ratios.is_empty()).collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut text = format!(
            "live frames into veth while commands run, Mpps\n  {:<60} {:>6} {:>6} {:>9} {:>15} {:>9} \
             {:>10} {:>9} {:>6}\n",
            "", "idle", "busy", "busy/idle", "spread, %", "commands", "ms each", "overruns", "lost"
        );
        let mut list = Vec::new();
        for row in rows {
            let (idle, busy, ratio) = (median(&row.idle), median(&row.busy), spread(&row.ratios));
            let took = spread(&row.commands);
            let range = format!("{:.1} to {:.1}", ratio.low * 100.0, ratio.high * 100.0);
            let [idle_overrun, busy_overrun] = row.overrun;
            writeln!(
                text,
                "  {:<60} {idle:>6.2} {busy:>6.2} {:>7.1} % {range:>15} {:>9} {:>10.1} {:>9} {:>6}",
                row.name,
                ratio.median * 100.0,
                row.commands.len(),
                took.median,
                idle_overrun + busy_overrun,
                0,
            )?;
            list.push(json!({
                "row": row.name, "rounds": row.ratios.len(), "idle_mpps": idle, "busy_mpps": busy,
                "ratio": ratio.median, "quartiles": [ratio.low, ratio.high],
                "commands": row.commands.len(), "command_ms": took.median,
                "command_quartiles_ms": [took.low, took.high], "sent": row.sent,
                "overrun_idle": idle_overrun, "overrun_busy": busy_overrun, "lost": 0,
            }));
        }
        text.push_str("  lost: sent, but neither received nor refused by a full queue\n\n");
        Ok(vec![Report { list: "swaps", text, json: json!({ "rows": list }) }])
    }

    fn absent(&self) -> &[String] {
        &self.absent
    }
}

impl Row {
    fn measure(&mut self) -> Result<()> {
        if let Some(&cpu) = online_cpus()?.get(1) {
            lab::stay_on_cpu(cpu)?;
        }
        let site = Site::quiet();
        match self.name {
            APPLY_PORTS => {
                let all = [
                    ports(INTERFACE, 1_000, DROP, &[])?,
                    dropped_ports(INTERFACE, &ports_of(1_000))?,
                ];
                self.swap(&site, all.map(|file| (file.policy(), file)))
            }
            APPLY_MIXED => {
                let one = Mixed::new(10_000, Family::V4)?.file(INTERFACE)?;
                let other = Mixed::new(9_999, Family::V4)?.file(INTERFACE)?;
                self.swap(&site, [one, other].map(|file| (file.policy(), file)))
            }
            EDIT_SET => {
                let set = Blocklist::of_addresses(PREFIXES, Family::V4)?;
                let mut file = set.file(INTERFACE)?;
                // The packets' source is not in the set, and what passes costs more than it is about.
                let policy = fs::read_to_string(file.policy())?;
                file.add(
                    PolicyFile::NAME,
                    &format!(
                        "{policy}[[rules]]\nname = \"rest\"\nprotocol = \"udp\"\ndst_port = {PORT}\n\
                         action = \"drop\"\n"
                    ),
                )?;
                let lines =
                    more_addresses()?.iter().map(|one| format!("{one}\n")).collect::<String>();
                let agent = serve(&site)?;
                let policy = file.policy();
                commands::time(&site, &agent, &["apply", commands::text(&policy)?], None)?;
                self.rounds(&site, |times| {
                    for verb in ["add", "remove"] {
                        let arguments = ["set", verb, "blocklist", "-"];
                        times.push(commands::time(&site, &agent, &arguments, Some(&lines))?);
                    }
                    Ok(())
                })?;
                assert_all_judged(&site)?;
                agent.end(libc::SIGINT);
                Ok(())
            }
            NFT_RULES => {
                let rules = |others: &[u16]| -> String {
                    let rule = |port| format!("add rule netdev bench c udp dport {port} drop\n");
                    others.iter().map(rule).collect()
                };
                let chain = "add table netdev bench\n\
                             add chain netdev bench c { type filter hook ingress device uplink priority 0; }\n\
                             flush chain netdev bench c\n";
                // The packets meet the first rule, so that it is the swap which counts.
                let first = [PORT];
                let all = [ports_of(1_000), ports_of(999)]
                    .map(|others| format!("{chain}{}{}", rules(&first), rules(&others)));
                self.nft(&site, &[&all[0]], &[&all[1], &all[0]])
            }
            _ => {
                let list = |prefixes: &[ipnet::IpNet]| {
                    let addresses = prefixes.iter().map(|one| format!("{},\n", one.addr()));
                    addresses.collect::<String>()
                };
                let set = list(&Blocklist::of_addresses(PREFIXES, Family::V4)?.prefixes);
                let more = list(&more_addresses()?);
                let begin = format!(
                    "table netdev bench {{\nset s {{ type ipv4_addr; elements = {{ {set} }}; }}\n\
                     chain c {{ type filter hook ingress device uplink priority 0;\n\
                     ip saddr @s drop\nudp dport {PORT} drop\n}}\n}}\n"
                );
                let add = format!("add element netdev bench s {{ {more} }}\n");
                let delete = format!("delete element netdev bench s {{ {more} }}\n");
                self.nft(&site, &[&begin], &[&add, &delete])
            }
        }
    }

    /// Applies two policies in turn.
    fn swap<T>(&mut self, site: &Site, policies: [(std::path::PathBuf, T); 2]) -> Result<()> {
        let agent = serve(site)?;
        self.rounds(site, |times| {
            for (path, _) in &policies {
                times.push(commands::time(site, &agent, &["apply", commands::text(path)?], None)?);
            }
            Ok(())
        })?;
        assert_all_judged(site)?;
        agent.end(libc::SIGINT);
        Ok(())
    }

    /// Has nft read these scripts, once those to begin with and then the others all the time.
    fn nft(&mut self, site: &Site, begin: &[&str], again: &[&str]) -> Result<()> {
        site.cable.right.set_offload(Offload::Gro, true)?;
        let directory = tempfile::tempdir()?;
        let write = |name: String, script: &&str| -> Result<String> {
            let path = directory.path().join(name);
            fs::write(&path, script)?;
            Ok(path.display().to_string())
        };
        let read = |path: &String| contestants::run(&site.host, "nft", &["-f", path]);
        for (number, script) in begin.iter().enumerate() {
            read(&write(format!("begin-{number}"), script)?)?;
        }
        let again = again
            .iter()
            .enumerate()
            .map(|(number, script)| write(format!("again-{number}"), script))
            .collect::<Result<Vec<String>>>()?;
        self.rounds(site, |times| {
            for path in &again {
                let start = Instant::now();
                read(path)?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            Ok(())
        })
    }

    /// Lets packets come while nothing is done, and while something is, in turn.
    fn rounds(
        &mut self,
        site: &Site,
        mut body: impl FnMut(&mut Vec<f64>) -> Result<()>,
    ) -> Result<()> {
        // Once without packets, so that nothing is new any more.
        body(&mut Vec::new())?;
        let cpus = online_cpus()?;
        let flood = Flood::new(site, cpus.get(1).and(cpus.first()).copied())?;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let (idle_for, idle) = flood.during(|| {
                thread::sleep(IDLE);
                start.elapsed()
            })?;
            let start = Instant::now();
            let (busy_for, busy) = flood.during(|| -> Result<Duration> {
                while start.elapsed() < BUSY {
                    body(&mut self.commands)?;
                }
                Ok(start.elapsed())
            })?;
            let mpps = |packets: u64, time: Duration| packets as f64 / time.as_secs_f64() / 1e6;
            let (idle_rate, busy_rate) =
                (mpps(idle.received, idle_for), mpps(busy.received, busy_for?));
            self.idle.push(idle_rate);
            self.busy.push(busy_rate);
            self.ratios.push(busy_rate / idle_rate);
            self.sent += idle.sent + busy.sent;
            self.overrun[0] += idle.overrun;
            self.overrun[1] += busy.overrun;
        }
        Ok(())
    }
}

fn serve(site: &Site) -> Result<Agent> {
    let small = fs::read_to_string(ports(INTERFACE, 1, DROP, &[])?.policy())?;
    Ok(Agent::serve(&site.host, INSTANCE, &small))
}

/// Addresses that are not in the set.
fn more_addresses() -> Result<Vec<ipnet::IpNet>> {
    let mut all = Blocklist::of_addresses(PREFIXES + CHANGED, Family::V4)?.prefixes;
    Ok(all.split_off(PREFIXES))
}

/// Makes sure that portsteer has judged each packet that the interface has received, once.
fn assert_all_judged(site: &Site) -> Result<()> {
    let judged = || Stats::read(&site.host, INSTANCE).interface(INTERFACE);
    let received = site.cable.right.link()?.counters.rx_packets;
    wait_until("all packets are judged", || judged() >= received);
    match judged() {
        judged if judged == received => Ok(()),
        judged => Err(format!("{received} packets came, {judged} were judged").into()),
    }
}
