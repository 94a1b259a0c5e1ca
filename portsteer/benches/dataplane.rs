//! What a packet costs, in nanoseconds and in packets per second, beside the peers that are
//! installed: `cargo xtask bench`.
//!
//! Every figure is the median of interleaved rounds: in each round every program runs once, between
//! two runs of the empty program, and what counts is the difference or ratio to those two. The
//! kernel puts a program's code wherever there is room, and a bad place costs a nanosecond: so the
//! rounds come in batches, and in each all programs are loaded anew, in another order. A figure of
//! another day or machine tells nothing.

use std::{
    fmt::Write as _,
    os::fd::{AsFd, OwnedFd},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use portsteer::{
    dataplane::{
        Dataplane, Instance, program_in_slot,
        sys::{self, Instruction, TestRun},
    },
    lab::{self, Device, End, Namespace, Veth, ethtool::Offload},
    policy::{Policy, file, services::Services},
};
use portsteer_testkit::packet::{IPV4, IPV6, TCP, UDP, ethernet, ipv4, ipv6, tcp, udp};
use serde_json::{Value, json};

/// The port that every program under test drops.
const PORT: u16 = 9;
/// How many times everything is set up, and the rounds that follow each time: of test runs and of
/// live frames. At least 15 pairs make a figure.
struct Rounds {
    batches: usize,
    test_runs: usize,
    live: usize,
}

const ROUNDS: Rounds = Rounds { batches: 20, test_runs: 3, live: 2 };
const QUICK: Rounds = Rounds { batches: 5, test_runs: 3, live: 3 };
/// Test runs in a round: short slices, so that both halves of a pair see the same machine.
const REPEAT: u32 = 500_000;
/// Live frames in a round: many, since such a run ends with a tick of the scheduler's clock.
const FRAMES: u32 = 4_000_000;
/// The same for who takes the way into the stack, and for who goes through 1,000 rules there.
const NFT_FRAMES: u32 = 1_000_000;
const FEW_FRAMES: u32 = 50_000;
const NATIVE: u32 = 1 << 2;

fn main() -> ExitCode {
    let asked = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    let rounds = if asked("--quick") { QUICK } else { ROUNDS };
    match run(&rounds) {
        Ok(report) => {
            if asked("--json") {
                println!("{:#}", report.json);
            } else {
                println!("{}", report.text);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the benchmark failed: {error}");
            ExitCode::from(3)
        }
    }
}

struct Report {
    text: String,
    json: Value,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn run(rounds: &Rounds) -> Result<Report> {
    let drop = ethernet(IPV4, ipv4(UDP, udp(40_000, PORT, [0; 18])));
    let packets = [
        ("UDP over IPv4, dropped", drop.clone(), 1),
        ("TCP over IPv4, dropped", ethernet(IPV4, ipv4(TCP, tcp(40_000, PORT, [0; 6]))), 1),
        ("UDP over IPv6, dropped", ethernet(IPV6, ipv6(UDP, udp(40_000, PORT, [0; 18]))), 1),
        ("UDP over IPv4, passed", ethernet(IPV4, ipv4(UDP, udp(40_000, 0, [0; 18]))), 2),
    ];
    let mut tables: Vec<Table> = packets.iter().map(|_| Table::default()).collect();
    let mut live = Live::default();
    let mut absent = Vec::new();
    for batch in 0..rounds.batches {
        // Mounts and namespaces belong to a thread, and end with it.
        let measured = thread::scope(|scope| {
            scope
                .spawn(|| -> Result<Vec<String>> {
                    let bench = Bench::set_up(batch)?;
                    // Sender and receiver share it; moving between CPUs would cost half the rate.
                    lab::stay_on_this_cpu()?;
                    for ((_, frame, action), table) in packets.iter().zip(&mut tables) {
                        bench.nanoseconds(frame, *action, rounds.test_runs, table)?;
                    }
                    bench.live(&drop, rounds.live, &mut live)?;
                    Ok(bench.absent)
                })
                .join()
        });
        absent = measured.map_err(|_| "a batch panicked")??;
    }

    let mut text = String::new();
    let mut test_runs = Vec::new();
    for ((name, frame, _), table) in packets.iter().zip(tables) {
        let report = table.report(name, frame.len())?;
        text.push_str(&report.text);
        test_runs.push(report.json);
    }
    let live = live.report()?;
    text.push_str(&live.text);
    for absent in &absent {
        writeln!(text, "not measured: {absent}")?;
    }
    let json = json!({
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "batches": rounds.batches,
        "rounds": rounds.batches * rounds.test_runs,
        "live_rounds": rounds.batches * rounds.live,
        "test_runs": test_runs,
        "live_frames": live.json,
        "not_measured": absent,
    });
    Ok(Report { text, json })
}

/// What one packet costs: nanoseconds per run, contestant by contestant.
#[derive(Default)]
struct Table {
    empty: Vec<f64>,
    rows: Vec<Row>,
}

/// One value per round.
#[derive(Default)]
struct Row {
    name: String,
    gross: Vec<f64>,
    net: Vec<f64>,
}

impl Table {
    fn report(mut self, name: &str, bytes: usize) -> Result<Report> {
        let row = |wanted: &str| self.rows.iter().find(|row| row.name.contains(wanted));
        let (Some(one), Some(many)) = (row(" 1 rules"), row(" 65535 rules")) else {
            return Err("portsteer was not measured".into());
        };
        // Round by round.
        let mut flat: Vec<f64> =
            many.gross.iter().zip(&one.gross).map(|(many, one)| many / one).collect();
        let flat = median(&mut flat);
        let empty = median(&mut self.empty);
        let mut text = format!("{name} ({bytes} bytes), ns per packet\n");
        writeln!(text, "  {:<36} {:>8} {:>8} {:>15}", "", "gross", "net", "net, spread")?;
        writeln!(text, "  {:<36} {empty:>8.1}", "empty program")?;
        let mut rows = Vec::new();
        for Row { name, gross, net } in &mut self.rows {
            let (gross, middle) = (median(gross), median(net));
            let (low, high) = quartiles(net);
            let spread = format!("{low:.1} to {high:.1}");
            writeln!(text, "  {name:<36} {gross:>8.1} {middle:>8.1} {spread:>15}")?;
            rows.push(json!({
                "program": name, "gross_ns": gross, "net_ns": middle, "quartiles_ns": [low, high],
            }));
        }
        writeln!(text, "  gross with 65,535 rules / with 1 rule: {flat:.3}\n")?;
        let json = json!({
            "packet": name, "bytes": bytes, "empty_ns": empty, "many_rules_to_one": flat,
            "programs": rows,
        });
        Ok(Report { text, json })
    }
}

/// Packets per second, contestant by contestant.
#[derive(Default)]
struct Live {
    empty: Vec<f64>,
    rows: Vec<LiveRow>,
}

/// One value per round: the rate in Mpps, and what part of the empty program's that is.
#[derive(Default)]
struct LiveRow {
    name: String,
    rates: Vec<f64>,
    ratios: Vec<f64>,
}

impl Live {
    fn report(mut self) -> Result<Report> {
        let empty = median(&mut self.empty);
        let mut text =
            "live frames into veth, dropped on port 9, Mpps at the receiver\n".to_owned();
        writeln!(text, "  {:<40} {:>8} {:>16} {:>19}", "", "Mpps", "of empty drop", "spread")?;
        writeln!(text, "  {EMPTY_DROP:<40} {empty:>8.2}")?;
        // The number of rules makes no difference, so together they are the better figure.
        let mut ours: Vec<f64> = self
            .rows
            .iter()
            .filter(|row| row.name.starts_with("portsteer"))
            .flat_map(|row| row.ratios.iter().copied())
            .collect();
        let ours = median(&mut ours);
        let mut rows = Vec::new();
        let mut medians = Vec::new();
        for LiveRow { name, rates, ratios } in &mut self.rows {
            let (rate, ratio) = (median(rates), median(ratios));
            let (low, high) = quartiles(ratios);
            let spread = format!("{:.1} to {:.1} %", low * 100.0, high * 100.0);
            writeln!(text, "  {name:<40} {rate:>8.2} {:>14.1} % {spread:>19}", ratio * 100.0)?;
            rows.push(json!({
                "program": name, "mpps": rate, "of_empty_drop": ratio, "quartiles": [low, high],
            }));
            medians.push((&*name, ratio));
        }
        let of = |wanted: &str| {
            medians.iter().find(|(name, _)| name.starts_with(wanted)).map(|(_, ratio)| *ratio)
        };
        writeln!(text, "  {:<40} {:>8} {:>14.1} %", "portsteer, all together", "", ours * 100.0)?;
        if let Some(theirs) = of("xdp-filter") {
            writeln!(text, "  portsteer, all together / xdp-filter: {:.2}", ours / theirs)?;
        }
        text.push('\n');
        let json =
            json!({ "empty_mpps": empty, "programs": rows, "portsteer_of_empty_drop": ours });
        Ok(Report { text, json })
    }
}

const EMPTY_DROP: &str = "empty XDP_DROP";
const EMPTY_PASS: &str = "empty XDP_PASS";

/// A program on the receiving end of a veth pair of its own.
struct Contestant {
    name: String,
    sender: Device,
    receiver: Device,
    program: Option<OwnedFd>,
    /// Whatever keeps the program attached.
    _keep: Vec<OwnedFd>,
    redirect: OwnedFd,
    frames: u32,
}

struct Bench {
    namespace: Namespace,
    contestants: Vec<Contestant>,
    absent: Vec<String>,
    /// One for all sending ends: the kernel dispatches by comparing addresses, so every program
    /// that is attached somewhere costs the others a little.
    pass: OwnedFd,
}

impl Bench {
    /// Everyone, on a network of their own. In each batch somebody else is loaded first.
    fn set_up(batch: usize) -> Result<Self> {
        lab::private_mounts()?;
        let mut bench = Self {
            namespace: Namespace::new()?,
            contestants: Vec::new(),
            absent: Vec::new(),
            pass: load_returning("pass", 2)?,
        };
        let mut turns: [fn(&mut Self) -> Result<()>; 6] = [
            |bench| bench.empty(EMPTY_DROP, 1),
            |bench| bench.empty(EMPTY_PASS, 2),
            |bench| bench.portsteer(1),
            |bench| bench.portsteer(1_000),
            |bench| bench.portsteer(65_535),
            Self::xdp_filter,
        ];
        let first = batch % turns.len();
        turns.rotate_left(first);
        for turn in turns {
            turn(&mut bench)?;
        }
        // Back to the order of the tables.
        let back = bench.contestants.len() - first.min(bench.contestants.len());
        bench.contestants.rotate_left(back);
        bench.nftables()?;
        Ok(bench)
    }

    fn find(&self, name: &str) -> Result<&Contestant> {
        let found = self.contestants.iter().find(|contestant| contestant.name == name);
        found.ok_or_else(|| format!("there is no {name}").into())
    }

    /// A veth pair with XDP on the sending end as well, without which redirected frames are lost.
    fn add(
        &mut self,
        name: &str,
        attach: impl FnOnce(&Namespace, &Device) -> Result<(Option<OwnedFd>, Vec<OwnedFd>)>,
    ) -> Result<()> {
        let number = self.contestants.len();
        let Veth { left: sender, right: receiver } = Veth::between(
            End::new(&self.namespace, &format!("tx{number}")),
            End::new(&self.namespace, &format!("rx{number}")),
        )
        .create()?;
        let (program, mut keep) = attach(&self.namespace, &receiver)?;
        keep.push(self.link(&self.pass, sender.index())?);
        let redirect = load_redirect(sender.index())?;
        let name = name.to_owned();
        let frames = match &program {
            Some(_) => FRAMES,
            None if name.ends_with("1,000 rules") => FEW_FRAMES,
            None => NFT_FRAMES,
        };
        self.contestants.push(Contestant {
            frames,
            name,
            sender,
            receiver,
            program,
            _keep: keep,
            redirect,
        });
        Ok(())
    }

    fn link(&self, program: &OwnedFd, ifindex: u32) -> Result<OwnedFd> {
        Ok(self.namespace.run(|| sys::link_xdp(program.as_fd(), ifindex, NATIVE))?)
    }

    fn empty(&mut self, name: &str, action: i32) -> Result<()> {
        self.add(name, |namespace, receiver| {
            let program = load_returning("empty", action)?;
            let index = receiver.index();
            let link = namespace.run(|| sys::link_xdp(program.as_fd(), index, NATIVE))?;
            Ok((Some(program), vec![link]))
        })
    }

    fn portsteer(&mut self, rules: usize) -> Result<()> {
        let name = format!("portsteer, {rules} rules");
        self.add(&name, |namespace, receiver| {
            let instance = Instance::new(&format!("bench-{rules}"))?;
            let text = policy(receiver.name(), rules);
            let policy: Policy = file::parse(&text, &Services::embedded())
                .map_err(|errors| format!("{} errors in the policy", errors.len()))?
                .policy;
            namespace
                .run(|| Dataplane::lock(instance.clone())?.apply(&policy, "bench", "").map(drop))?;
            Ok((Some(program_in_slot(&instance, 0)?), Vec::new()))
        })
    }

    fn xdp_filter(&mut self) -> Result<()> {
        if !installed("xdp-filter") {
            self.absent.push("xdp-filter (apt-get install xdp-tools)".to_owned());
            return Ok(());
        }
        self.add("xdp-filter, 1 port", |namespace, receiver| {
            let name = receiver.name().to_owned();
            call(namespace, "xdp-filter", &["load", &name, "--mode", "native"])?;
            call(namespace, "xdp-filter", &["port", &PORT.to_string(), "--mode", "dst"])?;
            let id = receiver.link()?.xdp.and_then(|xdp| xdp.program_id);
            let program = sys::program_by_id(id.ok_or("xdp-filter has attached nothing")?)?;
            Ok((Some(program), Vec::new()))
        })
    }

    /// Ingress chains, whose frames go the way into the stack.
    fn nftables(&mut self) -> Result<()> {
        if !installed("nft") {
            self.absent.push("nftables (apt-get install nftables)".to_owned());
            return Ok(());
        }
        let all = (1..=30_000u32).map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
        let in_a_row =
            (10_000..10_999).map(|port| format!("udp dport {port} drop\n")).collect::<String>();
        let rulesets = [
            ("nftables ingress, 1 rule", format!("udp dport {PORT} drop")),
            ("nftables ingress, set of 30,000 ports", format!("udp dport {{ {all} }} drop")),
            ("nftables ingress, 1,000 rules", format!("{in_a_row}udp dport {PORT} drop")),
        ];
        for (number, (name, rules)) in rulesets.into_iter().enumerate() {
            self.add(name, |namespace, receiver| {
                let device = receiver.name();
                let ruleset = format!(
                    "table netdev bench{number} {{ chain c {{ type filter hook ingress device \
                     {device} priority 0; policy accept;\n{rules}\n}}\n}}\n"
                );
                let directory = tempfile::tempdir()?;
                let path = directory.path().join("ruleset");
                std::fs::write(&path, ruleset)?;
                call(namespace, "nft", &["-f", &path.to_string_lossy()])?;
                // Redirected frames are only taken by a receiver with GRO or XDP.
                receiver.set_offload(Offload::Gro, true)?;
                Ok((None, Vec::new()))
            })?;
        }
        Ok(())
    }

    /// Nanoseconds per packet, and what of that is more than an empty program takes.
    fn nanoseconds(
        &self,
        frame: &[u8],
        action: u32,
        rounds: usize,
        table: &mut Table,
    ) -> Result<()> {
        // An attached one, as all others are: the kernel patches its dispatcher around each test
        // run of a program that is not, and that costs milliseconds.
        let empty = self.find(if action == 1 { EMPTY_DROP } else { EMPTY_PASS })?;
        let Some(empty) = &empty.program else { return Err("no empty program".into()) };
        let contestants: Vec<(&str, &OwnedFd)> = self
            .contestants
            .iter()
            .filter(|contestant| ![EMPTY_DROP, EMPTY_PASS].contains(&contestant.name.as_str()))
            .filter_map(|contestant| Some((contestant.name.as_str(), contestant.program.as_ref()?)))
            .collect();
        table.rows.resize_with(contestants.len(), Row::default);
        // The empty program runs right before and right after each, so that both see the same
        // machine.
        let mut before = time(empty, frame, action)?;
        for round in 0..rounds {
            // Everyone gets every place in the order.
            for place in 0..contestants.len() {
                let index = (place + round) % contestants.len();
                let (name, program) = contestants[index];
                let with = time(program, frame, action)?;
                let after = time(empty, frame, action)?;
                let without = f64::midpoint(before, after);
                before = after;
                table.empty.push(after);
                let row = &mut table.rows[index];
                name.clone_into(&mut row.name);
                row.gross.push(with);
                row.net.push(with - without);
            }
        }
        Ok(())
    }

    /// Packets per second that the receiver counts, and what part that is of an empty program's.
    fn live(&self, frame: &[u8], rounds: usize, live: &mut Live) -> Result<()> {
        let empty = self.find(EMPTY_DROP)?;
        let contestants: Vec<&Contestant> =
            self.contestants.iter().filter(|contestant| contestant.name != EMPTY_DROP).collect();
        live.rows.resize_with(contestants.len(), LiveRow::default);
        // As for the nanoseconds.
        let mut before = self.rate(empty, frame)?;
        for round in 0..rounds {
            // Everyone gets every place in the order.
            for place in 0..contestants.len() {
                let index = (place + round) % contestants.len();
                let with = self.rate(contestants[index], frame)?;
                let after = self.rate(empty, frame)?;
                let without = f64::midpoint(before, after);
                before = after;
                live.empty.push(after);
                let row = &mut live.rows[index];
                contestants[index].name.clone_into(&mut row.name);
                row.rates.push(with);
                row.ratios.push(with / without);
            }
        }
        Ok(())
    }

    /// Millions of packets per second.
    fn rate(&self, contestant: &Contestant, frame: &[u8]) -> Result<f64> {
        let received = || -> Result<u64> { Ok(contestant.receiver.link()?.counters.rx_packets) };
        let before = received()?;
        let start = Instant::now();
        self.namespace.run(|| {
            sys::test_run(
                contestant.redirect.as_fd(),
                TestRun { frame, repeat: contestant.frames, live: true, first_buffer: None },
            )
        })?;
        let elapsed = start.elapsed();
        // The last batch may still be on its way; it is counted, its few microseconds are not.
        let mut counted = received()?;
        loop {
            thread::sleep(Duration::from_millis(2));
            let now = received()?;
            if now == counted {
                break;
            }
            counted = now;
        }
        let packets = counted - before;
        if packets == 0 {
            let name = &contestant.name;
            return Err(format!("{name}: no frame arrived on {}", contestant.sender.name()).into());
        }
        Ok(packets as f64 / elapsed.as_secs_f64() / 1e6)
    }
}

/// A policy of `rules` rules with one port each, of which the last but in no other way special
/// one drops [`PORT`].
fn policy(interface: &str, rules: usize) -> String {
    let mut text = format!("version = 1\ninterfaces = [\"{interface}\"]\nmode = \"native\"\n");
    let others = (1..=u16::MAX).rev().filter(|&port| port != PORT).take(rules - 1);
    for port in others.chain([PORT]) {
        let action = if port == PORT || port % 2 == 0 { "drop" } else { "pass" };
        let _ = write!(
            text,
            "[[rules]]\nname = \"port-{port}\"\nprotocol = [\"tcp\", \"udp\"]\ndst_port = {port}\n\
             action = \"{action}\"\n"
        );
    }
    text
}

/// Nanoseconds per run.
fn time(program: &OwnedFd, frame: &[u8], action: u32) -> Result<f64> {
    let start = Instant::now();
    let run = TestRun { frame, repeat: REPEAT, live: false, first_buffer: None };
    let result = sys::test_run(program.as_fd(), run)?;
    let elapsed = start.elapsed();
    if result.action != action {
        return Err(format!("the program returned {}, not {action}", result.action).into());
    }
    Ok(elapsed.as_secs_f64() * 1e9 / f64::from(REPEAT))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn quartiles(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 4], values[values.len() * 3 / 4])
}

fn insn(code: u8, registers: u8, immediate: i32) -> Instruction {
    Instruction { code, registers, offset: 0, immediate }
}

/// `return action;`
fn load_returning(name: &str, action: i32) -> Result<OwnedFd> {
    Ok(sys::load_xdp(name, &[insn(0xb7, 0, action), insn(0x95, 0, 0)])?)
}

/// `return bpf_redirect(ifindex, 0);`
fn load_redirect(ifindex: u32) -> Result<OwnedFd> {
    const BPF_REDIRECT: i32 = 23;
    let program = [
        insn(0xb7, 1, ifindex as i32),
        insn(0xb7, 2, 0),
        insn(0x85, 0, BPF_REDIRECT),
        insn(0x95, 0, 0),
    ];
    Ok(sys::load_xdp("redirect", &program)?)
}

fn installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn call(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<()> {
    let output = namespace.command(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    Err(format!("{program} {}: {error}{said}", arguments.join(" ")).into())
}
