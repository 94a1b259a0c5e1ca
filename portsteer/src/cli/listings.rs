//! `status` and `stats` for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::table::{Align, table};
use crate::{
    api::{AgentAnswer, ApplyAnswer, RemovedRule},
    dataplane::{InterfaceStatus, OffloadStatus, PolicyInfo, Stats, Status, TargetStatus},
};

/// A number of things.
pub fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// What was put in force, a line each.
pub fn applied(answer: &ApplyAnswer) -> Vec<String> {
    let mut lines = Vec::new();
    for attached in &answer.attached {
        let word = match attached.change.as_str() {
            "new" => "attached to",
            "upgraded" => "program replaced on",
            _ => "still on",
        };
        lines.push(format!("{word} {} ({} mode)", attached.name, attached.mode));
        if let Some(why) = &attached.native_refused {
            lines.push(format!("generic mode, because {why}"));
        }
    }
    lines.extend(answer.notes.iter().cloned());
    lines.extend(answer.detached.iter().map(|name| format!("detached from {name}")));
    for RemovedRule { name, packets, bytes } in &answer.removed {
        lines.push(format!("rule `{name}` is gone; it counted {packets} packets, {bytes} bytes"));
    }
    let what = format!("{}, default {}", count(answer.rules, "rule"), answer.default);
    let path = &answer.path;
    lines.push(match answer.trial_seconds {
        Some(seconds) => format!("{path} on trial for {}: {what}", in_words(seconds)),
        None if answer.generation == 0 => format!("{path} waits for its interfaces: {what}"),
        None => format!("{path} in force: {what}"),
    });
    lines
}

/// Seconds, such as `1m 30s`.
fn in_words(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// What an agent knows, for `portsteer status`.
pub fn agent(agent: &AgentAnswer) -> String {
    let mut text = format!(
        "agent: process {}, version {}, for {}, {}\n",
        agent.process,
        agent.version,
        age(UNIX_EPOCH + Duration::from_secs(agent.started_at)),
        agent.state
    );
    if let Some(left) = agent.trial_seconds_left {
        text.push_str(&format!(
            "on trial for {} more: `portsteer confirm` keeps it, `portsteer rollback` ends the trial\n",
            in_words(left)
        ));
    }
    for name in &agent.waiting {
        text.push_str(&format!("waiting for `{name}`, which does not exist\n"));
    }
    if let Some(why) = &agent.not_kept {
        text.push_str(&format!("would not be back after a restart of the machine: {why}\n"));
    }
    for problem in &agent.problems {
        text.push_str(&format!("problem: {problem}\n"));
    }
    let columns = [("WHEN", Align::Left), ("INTERFACE", Align::Left), ("WHAT", Align::Left)];
    let recent = agent.history.len().saturating_sub(RECENT);
    let rows: Vec<Vec<String>> = agent.history[recent..]
        .iter()
        .map(|event| {
            let when = format!("{} ago", age(UNIX_EPOCH + Duration::from_secs(event.at)));
            let interface = event.interface.clone().unwrap_or_else(|| "-".to_owned());
            vec![when, interface, event.what.clone()]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&format!("\n{}", table(&columns, &rows)));
    }
    text
}

/// How many events `status` shows; `--json` has all that are kept.
const RECENT: usize = 12;

/// `portsteer status`.
pub fn status(status: &Status) -> String {
    let rows: Vec<Vec<String>> = status
        .interfaces
        .iter()
        .map(|InterfaceStatus { name, mode, attached, tag, object, .. }| {
            let tag = tag.clone().unwrap_or_default();
            // Enough to tell objects apart; `--json` has all of it.
            let object = object.iter().flat_map(|digest| digest.chars()).take(16).collect();
            vec![name.clone(), mode.name().to_owned(), state(*attached), tag, object]
        })
        .collect();
    let columns = [
        ("INTERFACE", Align::Left),
        ("MODE", Align::Left),
        ("STATE", Align::Left),
        ("PROGRAM", Align::Left),
        ("OBJECT", Align::Left),
    ];
    let mut text =
        format!("{}\n{}", headline(&status.instance, &status.policy), table(&columns, &rows));
    let columns = [("TARGET", Align::Left), ("TO", Align::Left), ("STATE", Align::Left)];
    let rows: Vec<Vec<String>> = status
        .targets
        .iter()
        .map(|TargetStatus { name, to, state }| {
            vec![name.clone(), to.clone(), state.name().to_owned()]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&format!("\n{}", table(&columns, &rows)));
    }
    let columns = [("OFFLOAD", Align::Left), ("OF", Align::Left), ("SWITCHED", Align::Left)];
    let rows: Vec<Vec<String>> = status
        .offloads
        .iter()
        .map(|OffloadStatus { interface, offload, on }| {
            let to = if *on { "on" } else { "off" };
            vec![offload.to_string(), interface.clone(), to.to_owned()]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&format!("\n{}", table(&columns, &rows)));
    }
    text
}

/// `portsteer stats`.
pub fn stats(stats: &Stats) -> String {
    let mut text = headline(&stats.instance, &stats.policy);

    let columns = [
        ("RULE", Align::Left),
        ("MATCH", Align::Left),
        ("ACTION", Align::Left),
        ("PACKETS", Align::Right),
        ("BYTES", Align::Right),
    ];
    let rows: Vec<Vec<String>> = stats
        .rules
        .iter()
        .map(|rule| {
            let (packets, bytes) = (rule.packets.to_string(), rule.bytes.to_string());
            vec![rule.name.clone(), shortened(&rule.matches), rule.action.clone(), packets, bytes]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&format!("\n{}", table(&columns, &rows)));
    }

    let columns = [
        ("TARGET", Align::Left),
        ("TO", Align::Left),
        ("STATE", Align::Left),
        ("PACKETS", Align::Right),
        ("BYTES", Align::Right),
        ("LOST", Align::Right),
    ];
    let rows: Vec<Vec<String>> = stats
        .targets
        .iter()
        .map(|target| {
            let mut row =
                vec![target.name.clone(), target.to.clone(), target.state.name().to_owned()];
            let numbers = [target.packets, target.bytes, target.lost.total()];
            row.extend(numbers.map(|number| number.to_string()));
            row
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&format!("\n{}", table(&columns, &rows)));
    }

    for target in &stats.targets {
        if let Some(packets @ 1..) = target.interface_dropped {
            text.push_str(&format!(
                "{}: its interface itself has dropped {}, whoever sent them\n",
                target.name,
                count(packets as usize, "packet")
            ));
        }
    }

    let columns = [
        ("REASON", Align::Left),
        ("VERDICT", Align::Left),
        ("PACKETS", Align::Right),
        ("BYTES", Align::Right),
        ("", Align::Left),
    ];
    let rows: Vec<Vec<String>> = stats
        .reasons
        .iter()
        .map(|reason| {
            let (packets, bytes) = (reason.packets.to_string(), reason.bytes.to_string());
            let (name, verdict) = (reason.reason.to_string(), reason.verdict.to_string());
            vec![name, verdict, packets, bytes, reason.help.to_string()]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&format!("\n{}", table(&columns, &rows)));
    }

    let columns = [
        ("INTERFACE", Align::Left),
        ("MODE", Align::Left),
        ("STATE", Align::Left),
        ("PACKETS", Align::Right),
        ("BYTES", Align::Right),
        ("PASSED", Align::Right),
        ("STEERED", Align::Right),
        ("DROPPED", Align::Right),
        ("ABORTED", Align::Right),
    ];
    let rows: Vec<Vec<String>> = stats
        .interfaces
        .iter()
        .map(|interface| {
            let mut row = vec![
                interface.name.clone(),
                interface.mode.name().to_owned(),
                state(interface.attached),
            ];
            let numbers = [
                interface.packets,
                interface.bytes,
                interface.passed,
                interface.steered,
                interface.dropped,
                interface.aborted,
            ];
            row.extend(numbers.map(|number| number.to_string()));
            row
        })
        .collect();
    text.push_str(&format!("\n{}", table(&columns, &rows)));
    text
}

fn state(attached: bool) -> String {
    if attached { "attached" } else { "gone" }.to_owned()
}

/// A match with hundreds of ports would push the counts off the screen.
fn shortened(matches: &str) -> String {
    const MOST: usize = 40;
    if matches.chars().count() <= MOST {
        return matches.to_owned();
    }
    let short: String = matches.chars().take(MOST - 3).collect();
    format!("{short}...")
}

fn headline(instance: &str, policy: &PolicyInfo) -> String {
    let applied = UNIX_EPOCH + Duration::from_secs(policy.applied_at);
    let state = if policy.on_trial { "on trial" } else { "in force" };
    let mut line = format!(
        "instance {instance}: {}, {}, default {}, {state} for {}\n",
        policy.path,
        count(policy.rules, "rule"),
        policy.default,
        age(applied)
    );
    if policy.default == "drop" {
        line.push_str(
            "default drop: replies to this host's own connections are dropped too, unless a rule \
             passes them\n",
        );
    }
    line
}

fn age(since: SystemTime) -> String {
    // A clock that was set back makes no age negative.
    let seconds = SystemTime::now().duration_since(since).map_or(0, |age| age.as_secs());
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_matches_are_shortened() {
        assert_eq!(shortened("tcp dst_port 80"), "tcp dst_port 80");
        let long = shortened(&"1234,".repeat(100));
        assert_eq!(long.chars().count(), 40);
        assert!(long.ends_with("..."));
    }
}
