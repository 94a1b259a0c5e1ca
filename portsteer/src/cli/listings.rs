//! `status` and `stats` for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::table::{Align, table};
use crate::dataplane::{InterfaceStatus, OffloadStatus, PolicyInfo, Stats, Status, TargetStatus};

/// A number of things.
pub fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// `portsteer status`.
pub fn status(status: &Status) -> String {
    let rows: Vec<Vec<String>> = status
        .interfaces
        .iter()
        .map(|InterfaceStatus { name, mode, attached, .. }| {
            vec![name.clone(), mode.name().to_owned(), state(*attached)]
        })
        .collect();
    let columns = [("INTERFACE", Align::Left), ("MODE", Align::Left), ("STATE", Align::Left)];
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
            vec![(*offload).to_owned(), interface.clone(), to.to_owned()]
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
            let (name, verdict) = (reason.reason.to_owned(), reason.verdict.to_owned());
            vec![name, verdict, packets, bytes, reason.help.to_owned()]
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
    let mut line = format!(
        "instance {instance}: {}, {}, default {}, in force for {}\n",
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
