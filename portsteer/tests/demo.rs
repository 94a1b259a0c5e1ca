//! `portsteer demo`, end to end. Needs root.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use portsteer::lab;
use serde_json::Value;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portsteer"));
    lab::die_with_thread(command.arg("demo"));
    command
}

/// The demo's result, and everything that it said.
fn result() -> (Value, String) {
    let output = demo().arg("--json").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let said = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    (serde_json::from_str(&text).unwrap(), said)
}

#[test]
fn everything_is_as_the_policy_says() {
    let started = Instant::now();
    let (result, said) = result();
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(result["ok"], true, "{said}");
    assert_eq!(result["mode"], "native", "{said}");
    assert!(result["rows"].as_array().unwrap().iter().all(|row| row["as_policy"] == true));
    for target in result["targets"].as_array().unwrap() {
        assert_eq!(target["lost"], 0, "{said}");
        assert!(target["packets"].as_u64() >= Some(2), "{said}");
        let arrives = target["arrived"].as_u64();
        assert!(arrives.is_none() || arrives >= target["packets"].as_u64(), "{said}");
    }
    let number = |key: &str| result[key].as_u64().unwrap();
    assert_eq!(number("passed") + number("steered") + number("dropped"), number("packets"));
}

#[test]
fn one_address_leads_to_several_places() {
    let (result, said) = result();
    let row = |protocol: &str, port: u16| {
        let rows = result["rows"].as_array().unwrap();
        rows.iter().find(|row| row["protocol"] == protocol && row["port"] == port).unwrap()
    };
    for family in ["ipv4", "ipv6"] {
        for (port, place) in [
            (80, "web"),
            (8443, "web2"),
            (25, "mail"),
            (587, "mail"),
            (8080, "host"),
            (143, "host"),
        ] {
            assert_eq!(row("tcp", port)[family]["by"], place, "{port}, {family}: {said}");
        }
        let dns = row("udp", 53)[family]["by"].as_str().unwrap();
        let cpu = dns.strip_prefix("host, CPU ").unwrap_or_else(|| panic!("{dns}: {said}"));
        assert!(cpu.parse::<u32>().is_ok(), "{dns}");
        assert_eq!(row("tcp", 23)[family]["outcome"], "silence", "{said}");
        assert_eq!(row("tcp", 81)[family]["outcome"], "refused", "{said}");
    }
}

#[test]
fn it_ends_when_it_is_told_to() {
    let mut child = demo().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // In the middle of its rows, or while it still builds: both have to end well.
    std::thread::sleep(Duration::from_millis(1200));
    let started = Instant::now();
    lab::send_signal(&mut child, libc::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(started.elapsed() < Duration::from_secs(5));
}
