//! xdp-tools' own benchmarks of redirecting. Each is a process that attaches its program and, like
//! portsteer, listens on tracepoints: so it runs only while it is measured.

use std::{
    fs,
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use portsteer::{
    dataplane::sys,
    lab::{Device, send_signal},
};

use super::{Goal, installed};
use crate::{
    Result,
    arena::{Arena, Engine},
};

/// How long it may take to attach its program, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Its subcommands that redirect to another interface, and those to another CPU.
pub const REDIRECTS: [&str; 2] = ["redirect", "redirect-map"];
pub const REDIRECTS_TO_CPU: [&str; 2] = ["redirect-cpu -p no-touch", "redirect-cpu -p l4-hash"];

/// One of its subcommands, which redirects to this goal. If it does not run on this kernel, that is noted.
pub fn xdp_bench(arena: &mut Arena, subcommand: &str, goal: Goal) -> Result<()> {
    if !installed(arena, "xdp-bench", "xdp-tools") {
        return Ok(());
    }
    let lane = arena.lane()?;
    let goal = match goal {
        Goal::Sink => lane.exit.name().to_owned(),
        Goal::OtherCpu => format!("--cpu={}", arena.other_cpu()?),
    };
    let mut arguments: Vec<String> = subcommand.split(' ').map(str::to_owned).collect();
    // It reports every two seconds if it is not told otherwise.
    arguments.extend(["--interval=3600", lane.receiver.name(), &goal].map(str::to_owned));
    let mut engine = XdpBench { receiver: lane.receiver.clone(), arguments, running: None };
    match engine.start().and_then(|()| engine.stop()) {
        Ok(()) => arena.add(&format!("xdp-bench {subcommand}"), lane, engine),
        Err(error) => arena.absent.push(format!("xdp-bench {subcommand}: {error}")),
    }
    Ok(())
}

/// One of its subcommands on a lane.
struct XdpBench {
    receiver: Device,
    arguments: Vec<String>,
    /// The process and its program.
    running: Option<(Child, OwnedFd)>,
}

impl Engine for XdpBench {
    fn program(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|(_, program)| program.as_fd())
    }

    fn start(&mut self) -> Result<()> {
        let mut command = self.receiver.namespace().command("xdp-bench");
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let start = Instant::now();
        let program = loop {
            // Until it has blocked the signal, to read it from a file, it would end of it and leave
            // its program attached.
            if let Some(id) = self.receiver.link()?.xdp.and_then(|xdp| xdp.program_id)
                && blocks_interrupts(child.id())?
            {
                break sys::program_by_id(id)?;
            }
            if child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let _ = child.kill();
                return Err(failure(&mut child).into());
            }
            thread::sleep(Duration::from_millis(1));
        };
        self.running = Some((child, program));
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let Some((mut child, _program)) = self.running.take() else { return Ok(()) };
        send_signal(&mut child, libc::SIGINT)?;
        let start = Instant::now();
        while child.try_wait()?.is_none() {
            if start.elapsed() > PATIENCE {
                child.kill()?;
                return Err("it does not end".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        match self.receiver.link()?.xdp {
            None => Ok(()),
            Some(_) => Err("it left its program attached".into()),
        }
    }
}

/// Whether a process has blocked `SIGINT` (proc(5): `SigBlk`, a mask whose first bit is signal 1).
fn blocks_interrupts(process: u32) -> Result<bool> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = u64::from_str_radix(mask.ok_or("no signal mask")?.trim(), 16)?;
    Ok(mask & 1 << (libc::SIGINT - 1) != 0)
}

/// Why it has attached nothing, in its own words.
fn failure(child: &mut Child) -> String {
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut said);
    }
    let lines = || said.lines().map(str::trim);
    // The last line says only that it failed; what this kernel lacks stands somewhere before.
    let why = lines().find(|line| line.contains("BTF")).or_else(|| lines().next_back());
    why.unwrap_or("it has attached nothing").to_owned()
}
