//! `portsteer demo`, end to end. Needs root.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use portsteer::lab;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portsteer"));
    lab::die_with_thread(command.arg("demo"));
    command
}

#[test]
fn everything_is_as_the_policy_says() {
    let started = Instant::now();
    let output = demo().arg("--json").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(started.elapsed() < Duration::from_secs(20));
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["ok"], true);
    assert!(result["rows"].as_array().unwrap().iter().all(|row| row["as_policy"] == true));
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
