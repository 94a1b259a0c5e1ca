//! The tables of the page about the benchmark, which are made from the figures that are kept: between
//! `<!-- bench:NAME -->` and `<!-- end:NAME -->`. The rest of the page is written by hand.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{Result, growth::with_commas};

/// Writes the tables of these contests into a page that has places for them.
pub fn update(page: &Path, contests: &Value) -> Result<()> {
    let mut text = match fs::read_to_string(page) {
        Ok(text) => text,
        Err(error) => return Err(format!("{}: {error}", page.display()).into()),
    };
    let contests = contests.as_object().ok_or("no contests")?;
    for (name, contest) in contests {
        if !replace(&mut text, name, &section(contest)?)? {
            eprintln!("{} has no place for {name}", page.display());
        }
    }
    let date =
        |contest: &&Value| contest["machine"]["date"].as_str().unwrap_or_default().to_owned();
    if let Some(newest) = contests.values().max_by_key(date) {
        replace(&mut text, "machine", &machine(&newest["machine"]))?;
    }
    Ok(fs::write(page, text)?)
}

/// Puts something between the marks of this name. Returns whether there are any.
fn replace(text: &mut String, name: &str, with: &str) -> Result<bool> {
    let (begin, end) = (format!("<!-- bench:{name} -->\n"), format!("<!-- end:{name} -->\n"));
    let Some(from) = text.find(&begin).map(|at| at + begin.len()) else { return Ok(false) };
    let len = text[from..].find(&end).ok_or_else(|| format!("the page has no {end}"))?;
    text.replace_range(from..from + len, with);
    Ok(true)
}

/// All tables of a contest.
fn section(contest: &Value) -> Result<String> {
    let machine = &contest["machine"];
    let mut text = format!(
        "\nLinux {}, {} CPUs ({}), {}, commit {}.\n\n",
        word(&machine["kernel"]),
        machine["cpus"],
        word(&machine["cpu"]),
        word(&machine["date"]).get(..10).unwrap_or_default(),
        machine["commit"].as_str().unwrap_or("unknown"),
    );
    for report in list(&contest["reports"]) {
        let part = match report["kind"].as_str().unwrap_or_default() {
            "test_runs" => test_runs(report),
            "live_frames" => live_frames(report),
            "curves" => curves(report),
            "cores" => cores(report),
            "compilations" => compilations(report),
            "edits" => edits(report),
            "daemon" => daemon(report),
            "swaps" => swaps(report),
            "memory" => memory(report),
            unknown => return Err(format!("a report of the kind {unknown:?}").into()),
        };
        text.push_str(&part);
        text.push('\n');
    }
    for absent in list(&contest["not_measured"]) {
        // Whatever a program has said, in one line.
        let absent = word(absent).split_whitespace().collect::<Vec<_>>().join(" ");
        text.push_str(&format!("Not measured: {absent}.\n\n"));
    }
    Ok(text)
}

fn machine(machine: &Value) -> String {
    let mut text = format!(
        "\n| | |\n| --- | --- |\n| CPU | {}, {} of them{} |\n| memory | {} MiB |\n| kernel | Linux {} |\n",
        word(&machine["cpu"]),
        machine["cpus"],
        if machine["virtual"] == true { ", of a virtual machine" } else { "" },
        machine["memory_mib"],
        word(&machine["kernel"]),
    );
    for (weakness, state) in machine["mitigations"].as_object().into_iter().flatten() {
        text.push_str(&format!("| `{weakness}` | {} |\n", word(state)));
    }
    let peers: Vec<String> = list(&machine["peers"]).iter().map(word).collect();
    text.push_str(&format!("| beside | {} |\n\n", peers.join(", ")));
    text
}

fn test_runs(report: &Value) -> String {
    let title = format!(
        "{} ({} bytes), test runs, ns per packet",
        word(&report["packet"]),
        report["bytes"]
    );
    let rotates = list(&report["programs"]).iter().any(|program| !program["dropped"].is_null());
    let mut rows = vec![vec![
        word(&report["zero"]),
        number(&report["zero_ns"], 1),
        String::new(),
        String::new(),
    ]];
    for program in list(&report["programs"]) {
        rows.push(vec![
            word(&program["program"]),
            number(&program["gross_ns"], 1),
            number(&program["net_ns"], 1),
            range(&program["quartiles_ns"], 1),
        ]);
    }
    let mut header = vec!["", "gross", "net", "net, half of the rounds"];
    if rotates {
        header.push("dropped");
        rows[0].push(String::new());
        for (row, program) in rows[1..].iter_mut().zip(list(&report["programs"])) {
            row.push(percent(&program["dropped"]));
        }
    }
    table(&title, &header, &rows)
}

fn live_frames(report: &Value) -> String {
    let title = format!("Live frames {}, Mpps", word(&report["title"]));
    let stages: Vec<&str> = ["arrived", "judged", "taken"]
        .into_iter()
        .filter(|stage| list(&report["programs"]).iter().any(|program| !program[*stage].is_null()))
        .collect();
    let mut header = vec![String::new()];
    let mut zero = vec![word(&report["zero"])];
    for (stage, rate) in stages.iter().zip(list(&report["zero_mpps"])) {
        header.extend([
            (*stage).to_owned(),
            "of the first".to_owned(),
            "half of the rounds".to_owned(),
        ]);
        zero.extend([number(rate, 2), String::new(), String::new()]);
    }
    let mut rows = vec![zero];
    for program in list(&report["programs"]) {
        let mut row = vec![word(&program["program"])];
        for stage in &stages {
            let found = &program[*stage];
            let quartiles = list(&found["quartiles"]).iter().map(percent).collect::<Vec<_>>();
            row.extend([
                number(&found["mpps"], 2),
                percent(&found["of_zero"]),
                quartiles.join(" to "),
            ]);
        }
        rows.push(row);
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    table(&title, &header, &rows)
}

fn curves(report: &Value) -> String {
    let title = format!("{}, live frames into veth, ns per packet", word(&report["title"]));
    let zero = vec![
        word(&report["zero"]),
        number(&report["zero_ns"], 1),
        String::new(),
        String::new(),
        "1".to_owned(),
    ];
    let row = |row: &Value| {
        vec![
            word(&row["row"]),
            number(&row["gross_ns"], 1),
            number(&row["net_ns"], 1),
            range(&row["net_quartiles_ns"], 1),
            number(&row["times_zero"], 2),
        ]
    };
    let rows: Vec<_> = [zero].into_iter().chain(list(&report["rows"]).iter().map(row)).collect();
    table(
        &title,
        &["", "gross", "net", "net, half of the rounds", "times the empty program"],
        &rows,
    )
}

fn cores(report: &Value) -> String {
    let row = |program: &Value| {
        vec![
            word(&program["program"]),
            number(&program["one_mpps"], 2),
            number(&program["two_mpps"], 2),
            number(&program["ratio"], 2),
            range(&program["quartiles"], 2),
        ]
    };
    let rows: Vec<_> = list(&report["programs"]).iter().map(row).collect();
    let title = "Live frames into veth with two queues, dropped, Mpps";
    table(title, &["", "one core", "two cores", "two / one", "half of the rounds"], &rows)
}

fn compilations(report: &Value) -> String {
    let kib = |value: &Value| with_commas((value.as_u64().unwrap_or_default() / 1024) as usize);
    let row = |policy: &Value| {
        vec![
            word(&policy["policy"]),
            number(&policy["read_ms"], 1),
            number(&policy["understand_ms"], 1),
            number(&policy["compile_ms"], 1),
            range(&policy["compile_quartiles_ms"], 1),
            kib(&policy["file_bytes"]),
            kib(&policy["table_bytes"]),
        ]
    };
    let rows: Vec<_> = list(&report["policies"]).iter().map(row).collect();
    let header =
        ["", "read", "understand", "compile", "half of the rounds", "files, KiB", "tables, KiB"];
    table("Until a policy can be put in force, ms", &header, &rows)
}

fn edits(report: &Value) -> String {
    let row = |edit: &Value| {
        vec![
            word(&edit["edit"]),
            number(&edit["sum_ms"], 1),
            range(&edit["sum_quartiles_ms"], 1),
            number(&edit["anew_ms"], 1),
            number(&edit["ratio"], 2),
        ]
    };
    let rows: Vec<_> = list(&report["edits"]).iter().map(row).collect();
    let header = ["", "edited", "half of the rounds", "compiled anew", "ratio"];
    table("Until an edit of a set can be put in force, ms", &header, &rows)
}

fn daemon(report: &Value) -> String {
    let mib = |value: &Value| format!("{:.1} MiB", value.as_f64().unwrap_or_default() / 1024.0);
    let mut text = format!(
        "With one rule, the agent has {} resident, and takes {} ms of processor time in {} s of doing nothing. \
         With 100,000 mixed rules and a set of 1,000,000 prefixes it has {}, and had {} at most until then.\n\n",
        mib(&report["small_resident_kib"]),
        number(&report["idle_ms"], 0),
        report["idle_seconds"],
        mib(&report["large_resident_kib"]),
        mib(&report["large_peak_kib"]),
    );
    let row = |time: &Value| {
        vec![word(&time["what"]), number(&time["median_ms"], 1), range(&time["quartiles_ms"], 1)]
    };
    let rows: Vec<_> = list(&report["times"]).iter().map(row).collect();
    let title = "From a command's start to its end, ms";
    text.push_str(&table(title, &["", "median", "half of the rounds"], &rows));
    text
}

fn swaps(report: &Value) -> String {
    let count = |value: &Value| with_commas(value.as_u64().unwrap_or_default() as usize);
    let row = |row: &Value| {
        let quartiles = list(&row["quartiles"]).iter().map(percent).collect::<Vec<_>>();
        vec![
            word(&row["row"]),
            number(&row["idle_mpps"], 2),
            number(&row["busy_mpps"], 2),
            percent(&row["ratio"]),
            quartiles.join(" to "),
            number(&row["command_ms"], 1),
            count(&row["commands"]),
            count(&row["sent"]),
            count(&row["lost"]),
        ]
    };
    let rows: Vec<_> = list(&report["rows"]).iter().map(row).collect();
    let header = [
        "",
        "at rest, Mpps",
        "meanwhile",
        "ratio",
        "half of the rounds",
        "ms each",
        "commands",
        "packets",
        "lost",
    ];
    table("Packets while commands run, one after the other", &header, &rows)
}

fn memory(report: &Value) -> String {
    let mib = |value: &Value| {
        value
            .as_f64()
            .map_or_else(String::new, |bytes| format!("{:.1}", bytes / f64::from(1 << 20)))
    };
    let row = |row: &Value| {
        let columns = ["map_bytes", "program_bytes", "agent_resident_bytes", "agent_peak_bytes"];
        let values = columns.iter().map(|column| mib(&row[column]));
        [word(&row["row"])].into_iter().chain(values).collect()
    };
    let rows: Vec<Vec<String>> = list(&report["rows"]).iter().map(row).collect();
    let header = ["", "maps", "programs", "agent, at rest", "agent, at most"];
    table("Memory, MiB", &header, &rows)
}

/// A table with a title. What is not in the first column is a number.
fn table(title: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<&str> =
        (0..header.len()).map(|column| if column == 0 { "---" } else { "--:" }).collect();
    let mut text = format!("**{title}**\n\n{}{}", line(header), line(&rule));
    for row in rows {
        text.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    text
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// With so many places; of large numbers the fraction says nothing.
fn number(value: &Value, places: usize) -> String {
    let number = value.as_f64().unwrap_or_default();
    if number >= 1_000.0 {
        with_commas(number.round() as usize)
    } else {
        format!("{number:.places$}")
    }
}

fn range(quartiles: &Value, places: usize) -> String {
    format!("{} to {}", number(&quartiles[0], places), number(&quartiles[1], places))
}

fn percent(value: &Value) -> String {
    format!("{:.1} %", value.as_f64().unwrap_or_default() * 100.0)
}
