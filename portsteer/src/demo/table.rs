//! How the demo looks.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
};

use serde::Serialize;

use super::{
    Summary,
    counters::Steered,
    probe::{Experience, Outcome},
    rows::{Judged, Protocol},
};

/// Prints rows as they come, or all of it as JSON at the end.
#[derive(Debug)]
pub(super) enum Report {
    Table { color: bool, heading: Option<&'static str> },
    Json { rows: Vec<JsonRow> },
}

const PICTURE: &str = "\
portsteer demo: one address, several places. The client opens real connections to real servers, all
of them at 192.0.2.1 or 2001:db8::1, which is the host's and that of three namespaces behind it. The
port tells where packets lead.

                             +---------------------------------------+            +----------+
    +---------------+        |  host              +-------------> to-web ------ eth0  web    |
    |    client     |        |                    |                  |            +----------+
    |               | veth   |                    +-------------> to-web2 ----- eth0  web2   |
    |  192.0.2.2    |----- uplink --> portsteer --+                  |            +----------+
    |  2001:db8::2  |        |  (XDP)             +-------------> to-mail ----- eth0  mail   |
    +---------------+        |                    |                  |            +----------+
                             |                    +--> chosen CPUs   |
                             |                    +--> its servers   |
                             +---------------------------------------+
";

const GREEN: &str = "32";
const RED: &str = "31";
const BOLD: &str = "1";

impl Report {
    pub(super) fn new(json: bool) -> Self {
        if json {
            return Self::Json { rows: Vec::new() };
        }
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self::Table { color: io::stdout().is_terminal() && !no_color, heading: None }
    }

    pub(super) fn start(&self) -> io::Result<()> {
        if let Self::Table { color, .. } = self {
            let heading = columns([
                "port",
                "service",
                "rule",
                "answer over IPv4",
                "answer over IPv6",
                "packets",
            ]);
            let mut out = io::stdout().lock();
            writeln!(out, "{PICTURE}")?;
            writeln!(out, "{}", paint(*color, BOLD, heading.trim_end()))?;
            out.flush()?;
        }
        Ok(())
    }

    pub(super) fn row(&mut self, judged: &Judged) -> io::Result<()> {
        match self {
            Self::Table { color, heading } => {
                let mut out = io::stdout().lock();
                let row = &judged.row;
                let of_group = row.group.heading();
                if heading.replace(of_group) != Some(of_group) {
                    writeln!(out, "\n{of_group}")?;
                }
                let [over_ipv4, over_ipv6] = &judged.experiences;
                let line = columns([
                    &format!("{} {}", row.protocol.name(), row.port),
                    if row.service.is_empty() { "-" } else { row.service },
                    row.rule.unwrap_or("-"),
                    &over_ipv4.to_string(),
                    &over_ipv6.to_string(),
                    &judged.packets.to_string(),
                ]);
                let mark = if judged.deviations.is_empty() {
                    paint(*color, GREEN, "ok")
                } else {
                    paint(*color, RED, "NOT OK")
                };
                writeln!(out, "{line}  {mark}")?;
                out.flush()
            }
            Self::Json { rows } => {
                rows.push(JsonRow::from(judged));
                Ok(())
            }
        }
    }

    pub(super) fn end(self, summary: &Summary) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self {
            Self::Table { color, .. } => {
                let Summary { packets, passed, steered, dropped, targets, .. } = summary;
                let heading = target_columns(["target", "leads to", "packets", "arrived", "lost"]);
                writeln!(out, "\n{}", paint(color, BOLD, heading.trim_end()))?;
                for Steered { name, to, packets, lost, arrived } in targets {
                    let number = |count: Option<u64>| {
                        count.map_or_else(|| "-".to_owned(), |count| count.to_string())
                    };
                    let [packets, arrived, lost] =
                        [Some(*packets), *arrived, Some(*lost)].map(number);
                    writeln!(out, "{}", target_columns([name, to, &packets, &arrived, &lost]))?;
                }
                writeln!(
                    out,
                    "\nIn all, the kernel counted {packets} packets on uplink: {passed} passed, \
                     {steered} steered, {dropped} dropped."
                )?;
                let circumstances = format!(
                    "({} mode, kernel {}, {:.1} s)",
                    summary.mode, summary.kernel, summary.seconds
                );
                if summary.deviations.is_empty() {
                    let rows = summary.rows;
                    let text = format!("All {rows} rows were as the policy says {circumstances}.");
                    writeln!(out, "{}", paint(color, GREEN, &text))?;
                } else {
                    let text = format!("Not everything was as the policy says {circumstances}:");
                    writeln!(out, "{}", paint(color, RED, &text))?;
                    for deviation in &summary.deviations {
                        writeln!(out, "  - {deviation}")?;
                    }
                }
            }
            Self::Json { rows } => {
                let ok = summary.deviations.is_empty();
                serde_json::to_writer_pretty(&mut out, &Json { ok, summary, rows: &rows })?;
                writeln!(out)?;
            }
        }
        out.flush()
    }
}

fn columns([port, service, rule, ipv4, ipv6, packets]: [&str; 6]) -> String {
    format!("  {port:<10} {service:<11} {rule:<11} {ipv4:<23} {ipv6:<23} {packets:>7}")
}

fn target_columns([name, to, packets, arrived, lost]: [&str; 5]) -> String {
    format!("  {name:<10} {to:<23} {packets:>7} {arrived:>8} {lost:>5}")
}

fn paint(color: bool, code: &str, text: &str) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[derive(Serialize)]
struct Json<'a> {
    ok: bool,
    #[serde(flatten)]
    summary: &'a Summary,
    rows: &'a [JsonRow],
}

#[derive(Debug, Serialize)]
pub(super) struct JsonRow {
    protocol: Protocol,
    port: u16,
    service: Option<&'static str>,
    rule: Option<&'static str>,
    action: &'static str,
    /// Where the rule steers to.
    target: Option<&'static str>,
    ipv4: JsonExperience,
    ipv6: JsonExperience,
    packets: u64,
    as_policy: bool,
}

#[derive(Debug, Serialize)]
struct JsonExperience {
    outcome: &'static str,
    /// Who says that it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    milliseconds: f64,
}

impl From<&Judged> for JsonRow {
    fn from(judged: &Judged) -> Self {
        let Judged { row, experiences, packets, deviations } = judged;
        Self {
            protocol: row.protocol,
            port: row.port,
            service: Some(row.service).filter(|name| !name.is_empty()),
            rule: row.rule,
            action: row.group.action(),
            target: row.group.target(),
            ipv4: (&experiences[0]).into(),
            ipv6: (&experiences[1]).into(),
            packets: *packets,
            as_policy: deviations.is_empty(),
        }
    }
}

impl From<&Experience> for JsonExperience {
    fn from(experience: &Experience) -> Self {
        let (by, text) = match &experience.outcome {
            Outcome::Answered { by, text } => (by.clone(), Some(text.clone())),
            Outcome::Failed(text) => (None, Some(text.clone())),
            Outcome::Refused | Outcome::Silence => (None, None),
        };
        // Microseconds are as fine as it gets.
        let milliseconds = (experience.milliseconds * 1000.0).round() / 1000.0;
        Self { outcome: experience.outcome.name(), by, text, milliseconds }
    }
}
