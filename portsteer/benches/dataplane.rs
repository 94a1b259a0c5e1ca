//! What a packet costs, in nanoseconds and in packets per second, beside the peers that are
//! installed: `cargo xtask bench`.
//!
//! Every figure is the median of interleaved rounds: in each round every program runs once, the
//! empty program among them, and what counts is the difference or ratio within the round. A
//! figure of another day or machine tells nothing.

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
/// Interleaved rounds. At least 15 make a figure.
const ROUNDS: usize = 61;
/// Interleaved rounds of live frames.
const LIVE_ROUNDS: usize = 21;
/// Test runs in a round: short slices, so that both halves of a pair see the same machine.
const REPEAT: u32 = 500_000;
/// Live frames in a round: many, since setting such a run up takes milliseconds.
const FRAMES: u32 = 2_000_000;
/// The same for who would take half a minute for so many.
const FEW_FRAMES: u32 = 50_000;
const NATIVE: u32 = 1 << 2;

fn main() -> ExitCode {
    let asked = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    let (json, quick) = (asked("--json"), asked("--quick"));
    // Mounts and namespaces belong to a thread.
    let result = thread::spawn(move || run(if quick { 15 } else { ROUNDS })).join();
    match result {
        Ok(Ok(report)) => {
            if json {
                println!("{:#}", report.json);
            } else {
                println!("{}", report.text);
            }
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            eprintln!("the benchmark failed: {error}");
            ExitCode::from(3)
        }
        Err(_) => ExitCode::from(3),
    }
}

struct Report {
    text: String,
    json: Value,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

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

fn run(rounds: usize) -> Result<Report> {
    lab::private_mounts()?;
    let namespace = Namespace::new()?;
    let mut bench = Bench {
        namespace,
        contestants: Vec::new(),
        absent: Vec::new(),
        pass: load_returning("pass", 2)?,
    };
    bench.empty("empty XDP_DROP", 1)?;
    bench.empty("empty XDP_PASS", 2)?;
    for rules in [1, 1_000, 65_535] {
        bench.portsteer(rules)?;
    }
    bench.xdp_filter()?;
    let attached = bench.contestants.len();
    bench.nftables()?;

    let drop = ethernet(IPV4, ipv4(UDP, udp(40_000, PORT, [0; 18])));
    let packets = [
        ("UDP over IPv4, dropped", drop.clone(), 1),
        ("TCP over IPv4, dropped", ethernet(IPV4, ipv4(TCP, tcp(40_000, PORT, [0; 6]))), 1),
        ("UDP over IPv6, dropped", ethernet(IPV6, ipv6(UDP, udp(40_000, PORT, [0; 18]))), 1),
        ("UDP over IPv4, passed", ethernet(IPV4, ipv4(UDP, udp(40_000, 0, [0; 18]))), 2),
    ];
    let mut text = String::new();
    let mut tables = Vec::new();
    for (name, frame, action) in &packets {
        let table = bench.nanoseconds(name, frame, *action, attached, rounds)?;
        text.push_str(&table.text);
        tables.push(table.json);
    }
    let live = bench.live(&drop, rounds.min(LIVE_ROUNDS))?;
    text.push_str(&live.text);
    for absent in &bench.absent {
        writeln!(text, "not measured: {absent}")?;
    }
    let json = json!({
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "rounds": rounds,
        "test_runs": tables,
        "live_frames": live.json,
        "not_measured": bench.absent,
    });
    Ok(Report { text, json })
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
        let frames = if name.ends_with("1,000 rules") { FEW_FRAMES } else { FRAMES };
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

    /// Nanoseconds per packet, less those of an empty program.
    fn nanoseconds(
        &self,
        name: &str,
        frame: &[u8],
        action: u32,
        attached: usize,
        rounds: usize,
    ) -> Result<Report> {
        // An attached one, as all others are: the kernel patches its dispatcher around each test
        // run of a program that is not, and that costs milliseconds.
        let empty = &self.contestants[if action == 1 { 0 } else { 1 }];
        let Some(empty) = &empty.program else { return Err("no empty program".into()) };
        let contestants: Vec<&Contestant> = self.contestants[2..attached].iter().collect();
        let mut gross: Vec<Vec<f64>> = vec![Vec::new(); contestants.len()];
        let mut net = gross.clone();
        let mut baseline = Vec::new();
        for round in 0..rounds {
            // Everyone gets every place in the order.
            for place in 0..contestants.len() {
                let index = (place + round) % contestants.len();
                let Some(program) = &contestants[index].program else { continue };
                // The empty program runs right before each, so that both see the same machine.
                let without = time(empty, frame, action)?;
                let with = time(program, frame, action)?;
                baseline.push(without);
                gross[index].push(with);
                net[index].push(with - without);
            }
        }
        // 1 rule and 65,535, round by round.
        let mut flat: Vec<f64> =
            gross[2].iter().zip(&gross[0]).map(|(many, one)| many / one).collect();
        let flat = median(&mut flat);
        let mut text = format!("{name} ({} bytes), ns per packet\n", frame.len());
        writeln!(text, "  {:<36} {:>8} {:>8} {:>15}", "", "gross", "net", "net, spread")?;
        writeln!(text, "  {:<36} {:>8.1}", "empty program", median(&mut baseline))?;
        let mut rows = Vec::new();
        for ((contestant, gross), net) in contestants.iter().zip(&mut gross).zip(&mut net) {
            let (gross, middle) = (median(gross), median(net));
            let (low, high) = quartiles(net);
            let name = &contestant.name;
            let spread = format!("{low:.1} to {high:.1}");
            writeln!(text, "  {name:<36} {gross:>8.1} {middle:>8.1} {spread:>15}")?;
            rows.push(json!({
                "program": name, "gross_ns": gross, "net_ns": middle, "quartiles_ns": [low, high],
            }));
        }
        writeln!(text, "  gross with 65,535 rules / with 1 rule: {flat:.3}\n")?;
        let json = json!({
            "many_rules_to_one": flat,
            "packet": name, "bytes": frame.len(), "empty_ns": median(&mut baseline),
            "programs": rows,
        });
        Ok(Report { text, json })
    }

    /// Packets per second that the receiver counts, and their ratio to an empty program's within
    /// the round.
    fn live(&self, frame: &[u8], rounds: usize) -> Result<Report> {
        let count = self.contestants.len();
        let mut rates: Vec<Vec<f64>> = vec![Vec::new(); count];
        for round in 0..rounds {
            // Everyone gets every place in the order.
            for place in 0..count {
                let index = (place + round) % count;
                rates[index].push(self.rate(&self.contestants[index], frame)?);
            }
        }
        let reference = rates[0].clone();
        let mut text =
            "live frames into veth, dropped on port 9, Mpps at the receiver\n".to_owned();
        writeln!(text, "  {:<40} {:>8} {:>16}", "", "Mpps", "of empty drop")?;
        let mut rows = Vec::new();
        let mut ratios_of = Vec::new();
        for (contestant, rates) in self.contestants.iter().zip(&mut rates) {
            let mut ratios: Vec<f64> =
                rates.iter().zip(&reference).map(|(rate, empty)| rate / empty).collect();
            let (rate, ratio) = (median(rates), median(&mut ratios));
            let name = &contestant.name;
            writeln!(text, "  {name:<40} {rate:>8.2} {:>14.1} %", ratio * 100.0)?;
            rows.push(json!({ "program": name, "mpps": rate, "of_empty_drop": ratio }));
            ratios_of.push((name.clone(), ratio));
        }
        let of = |wanted: &str| {
            ratios_of.iter().find(|(name, _)| name.starts_with(wanted)).map(|(_, ratio)| *ratio)
        };
        if let (Some(ours), Some(theirs)) = (of("portsteer, 65535"), of("xdp-filter")) {
            writeln!(text, "  portsteer with 65,535 rules / xdp-filter: {:.2}", ours / theirs)?;
        }
        text.push('\n');
        Ok(Report { text, json: json!(rows) })
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
