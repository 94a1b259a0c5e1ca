//! The operator's own way in: a policy that would cut it is refused, unless it is forced.

use std::{fs, io::ErrorKind, net::Ipv4Addr};

use portsteer::lab::{Device, End, Veth, VirtualKind};
use portsteer_testkit::{
    agent::{Agent, Outcome, binary, is_slow, policy_file, run},
    sandbox::{assert_no_pins, sandbox, skip},
    site::{Site, wait_until},
};

use crate::{
    HEAD, INSTANCE, assert_in_force, command,
    http::{get, send_json},
    in_force, policy, rule,
};

/// An operator at the client, over each family.
const SSH: &str = "198.51.100.7 51000 198.51.100.1 22";
const SSH_V6: &str = "2001:db8::7 51000 2001:db8::1 22";
/// The same as a server has it that listens on both.
const SSH_MAPPED: &str = "::ffff:198.51.100.7 51000 ::ffff:198.51.100.1 22";

/// `portsteer ARGUMENTS` as somebody types it who is here by SSH.
fn ask(site: &Site, agent: &Agent, ssh: &str, arguments: &[&str]) -> Outcome {
    Outcome::of(command(site, agent, arguments).env("SSH_CONNECTION", ssh))
}

fn apply(site: &Site, agent: &Agent, ssh: &str, policy: &str, more: &[&str]) -> Outcome {
    let path = agent.other_policy("applied.toml", policy);
    ask(site, agent, ssh, &[&["apply", path.to_str().unwrap()], more].concat())
}

/// A rule about TCP to port 22, with further lines.
fn ssh_rule(name: &str, action: &str, more: &str) -> String {
    format!(
        "[[rules]]\nname = \"{name}\"\nprotocol = \"tcp\"\ndst_port = \"ssh\"\naction = {action}\n{more}"
    )
}

fn no_ssh() -> String {
    policy() + &ssh_rule("no-ssh", "\"drop\"", "")
}

const REFUSED: &str = "the policy would cut your own connection";

#[test]
fn a_policy_that_cuts_the_operators_connection_is_refused() {
    sandbox(|| {
        let site = Site::new();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let target = "[targets.away]\ninterface = \"to-web\"\nmac = \"keep\"\n";
        let steered = policy() + target + &ssh_rule("away", "{ steer = \"away\" }", "");
        let dropping = HEAD.to_owned() + "default = \"drop\"\n" + &rule("blocked", 2000, "drop");
        let wide = policy() + "[[rules]]\nname = \"wide\"\naction = \"drop\"\n";
        for ssh in [SSH, SSH_V6, SSH_MAPPED] {
            let before = in_force(&agent);
            for (policy, said) in [
                (&no_ssh(), "rule `no-ssh` (line 9) drops it"),
                (&steered, "rule `away` (line 12) steers it to `away`"),
                (&dropping, "no rule matches it, and the default drops it"),
                (&wide, "rule `wide` (line 9) drops it"),
            ] {
                for more in [&[][..], &["--confirm", "60s"]] {
                    apply(&site, &agent, ssh, policy, more).expect(3, &[REFUSED, said, "--force"]);
                    assert_eq!(in_force(&agent), before);
                }
            }
            assert_in_force(&site, &agent);
            apply(&site, &agent, ssh, &no_ssh(), &["--force"]).expect(0, &["in force: 2 rules"]);
            // Nobody else is asked.
            agent.apply(&wide, &[]);
            agent.apply(&policy(), &[]);
            assert_in_force(&site, &agent);
            apply(&site, &agent, ssh, &steered, &["--force"]).expect(0, &[]);
            agent.apply(&policy(), &[]);
        }
    });
}

/// The policy is put in force, and the one before again.
fn let_through(site: &Site, agent: &Agent, ssh: &str, policy: &str) {
    apply(site, agent, ssh, policy, &[]).expect(0, &["in force"]);
    agent.apply(&crate::policy(), &[]);
}

#[test]
fn a_policy_that_lets_the_operator_through_is_not() {
    sandbox(|| {
        let site = Site::new();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let pass = |more: &str| ssh_rule("way-in", "\"pass\"", more);
        let dropping = HEAD.to_owned() + "default = \"drop\"\n";
        let last = ssh_rule("no-ssh", "\"drop\"", "");
        for (ssh, policy) in [
            (SSH, policy() + &pass("") + &last),
            (SSH, policy() + &pass("src = \"198.51.100.0/24\"\n") + &last),
            (SSH_MAPPED, policy() + &pass("src = \"198.51.100.7\"\n") + &last),
            (SSH_V6, policy() + &pass("src = \"2001:db8::7\"\ninterface = \"uplink\"\n") + &last),
            (SSH, dropping + &pass("vlan = \"untagged\"\n")),
            // What is dropped is another connection.
            (SSH, policy() + &ssh_rule("others", "\"drop\"", "src = \"!198.51.100.7\"\n")),
            (SSH, policy() + &ssh_rule("others", "\"drop\"", "src_port = 51001\n")),
            (SSH, policy() + &ssh_rule("others", "\"drop\"", "dst = \"198.51.100.2\"\n")),
            (SSH, policy() + &ssh_rule("tagged", "\"drop\"", "vlan = \"1-4094\"\n")),
            ("198.51.100.7 51000 198.51.100.1 2222", no_ssh()),
            (SSH_V6, policy() + &ssh_rule("v4", "\"drop\"", "src = \"0.0.0.0/0\"\n")),
            // CPUs of this host are this host.
            (
                SSH,
                policy()
                    + "[targets.cpu]\ncpus = [0]\n"
                    + &ssh_rule("cpu", "{ steer = \"cpu\" }", ""),
            ),
            // Over the loopback interface, from an address of its own, over no network at all.
            ("127.0.0.1 51000 127.0.0.1 22", no_ssh()),
            ("::1 51000 ::1 22", no_ssh()),
            ("198.51.100.1 51000 198.51.100.1 22", no_ssh()),
            ("UNKNOWN 65535 UNKNOWN 65535", no_ssh()),
            ("", no_ssh()),
        ] {
            let_through(&site, &agent, ssh, &policy);
        }
        // By another interface, which the policy is not for.
        let second = Veth::between(
            End::new(&site.client, "second-peer"),
            End::new(&site.host, "second").address(Ipv4Addr::new(203, 0, 113, 1), 24),
        );
        let second = second.create().unwrap();
        let by_second = "203.0.113.7 51000 203.0.113.1 22";
        let_through(&site, &agent, by_second, &no_ssh());
        let both = |text: &str| text.replace("\"uplink\"", "\"uplink\", \"second\"");
        apply(&site, &agent, by_second, &both(&no_ssh()), &[]).expect(3, &[REFUSED, "on second"]);
        let on_uplink = both(&policy()) + &ssh_rule("x", "\"drop\"", "interface = \"uplink\"\n");
        let_through(&site, &agent, by_second, &on_uplink);
        apply(&site, &agent, SSH, &on_uplink, &[]).expect(3, &[REFUSED, "on uplink", "rule `x`"]);
        drop(second);

        // What nobody can understand is not taken for a connection that is safe.
        apply(&site, &agent, "from home", &no_ssh(), &[])
            .expect(2, &["`from home` is no connection"]);
    });
}

#[test]
fn edits_and_rollback_are_looked_at_as_well() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &no_ssh());
        agent.apply(&policy(), &[]);
        let before = in_force(&agent);
        for (arguments, said) in [
            (&["port", "drop", "ssh", "--name", "gone"][..], "rule `gone`"),
            (&["port", "drop", "20-30", "--confirm", "60s"], "drops it"),
            (&["rule", "add", "drop", "--name", "all"], "rule `all`"),
            (&["rollback"], "rule `no-ssh` (line 9)"),
        ] {
            ask(&site, &agent, SSH, arguments).expect(3, &[REFUSED, said, "--force"]);
            assert_eq!(in_force(&agent), before, "{arguments:?}");
        }
        // Nothing is saved of what is not in force.
        let path = agent.other_policy("saved.toml", &policy());
        agent.ask(&["apply", path.to_str().unwrap()]).expect(0, &[]);
        ask(&site, &agent, SSH, &["port", "drop", "ssh", "--save"]).expect(3, &[REFUSED]);
        assert_eq!(fs::read_to_string(&path).unwrap(), policy());
        ask(&site, &agent, SSH, &["port", "drop", "ssh", "--save", "--force"])
            .expect(0, &["saved to"]);
        assert!(fs::read_to_string(&path).unwrap().contains("dst_port = \"ssh\""));
        // The way back to a policy that lets it through is open.
        ask(&site, &agent, SSH, &["rollback"]).expect(0, &["in force: 1 rule"]);
        ask(&site, &agent, SSH, &["rollback"]).expect(3, &[REFUSED]);
        ask(&site, &agent, SSH, &["rollback", "--force"]).expect(0, &["in force: 2 rules"]);
        assert_in_force(&site, &agent);
    });
}

/// As under `sudo`, which clears the environment: whoever typed it is an ancestor.
#[test]
fn the_connection_is_found_in_an_ancestors_environment() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let path = agent.other_policy("no-ssh.toml", &no_ssh());
        let under = |ssh: &str, script: &str| {
            let mut shell = site.host.command("sh");
            shell.args(["-c", script]).arg(binary()).arg(&path).arg(agent.socket());
            Outcome::of(shell.env("SSH_CONNECTION", ssh))
        };
        // The shell stays, so that there is an ancestor.
        let cleared = "env -i \"$0\" apply \"$1\" --socket \"$2\"; exit $?";
        under(SSH, cleared).expect(3, &[REFUSED, "rule `no-ssh`"]);
        let deep = "env -i sh -c 'env -i sh -c \"\\\"$0\\\" apply \\\"$1\\\" --socket \\\"$2\\\"; exit \\$?\" \"$0\" \"$1\" \"$2\"; exit $?' \"$0\" \"$1\" \"$2\"; exit $?";
        under(SSH, deep).expect(3, &[REFUSED, "rule `no-ssh`"]);
        assert_in_force(&site, &agent);
        // The nearest one knows.
        under("127.0.0.1 1 127.0.0.1 22", cleared).expect(0, &["in force: 2 rules"]);
        agent.apply(&policy(), &[]);
        let own =
            format!("env -i SSH_CONNECTION='{SSH}' \"$0\" apply \"$1\" --socket \"$2\"; exit $?");
        under("127.0.0.1 1 127.0.0.1 22", &own).expect(3, &[REFUSED]);
        let none = "env -i SSH_CONNECTION= \"$0\" apply \"$1\" --socket \"$2\"; exit $?";
        under(SSH, none).expect(0, &["in force: 2 rules"]);
    });
}

/// Writes `agent.toml`.
fn settings(directory: &tempfile::TempDir, text: &str) -> String {
    let path = directory.path().join("agent.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn what_is_to_be_protected_is_not_cut_by_anybody() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let config = settings(
            &directory,
            "protect = [\"ssh\", 8443, \"udp 198.51.100.7 -> 198.51.100.1:2005\"]\n",
        );
        let tcp = |port: &str, more: &str| {
            policy()
                + &format!(
                    "[[rules]]\nname = \"cut\"\nprotocol = \"tcp\"\ndst_port = {port}\n{more}action = \"drop\"\n"
                )
        };
        let cutting = [
            (no_ssh(), "(`ssh`)", "rule `no-ssh`"),
            (tcp("\"8000-9000\"", ""), "(`8443`)", "rule `cut`"),
            (policy() + &rule("cut", 2005, "drop"), "2005", "rule `cut`"),
            (HEAD.to_owned() + "default = \"drop\"\n", "(`ssh`)", "the default drops it"),
        ];
        let refused = "the policy would cut what is to be protected";
        for (policy, what, said) in &cutting {
            let path = policy_file(directory.path(), policy);
            let state = directory.path().join("state").display().to_string();
            let path = path.to_str().unwrap();
            let start = ["agent", "--policy", path, "--config", &config, "--state-dir", &state];
            run(&site.host, &start).expect(3, &[refused, what, said]);
            assert_no_pins();
        }

        let mut agent = Agent::serve_with(&site.host, INSTANCE, &policy(), &["--config", &config]);
        let before = in_force(&agent);
        for (policy, what, said) in &cutting {
            apply(&site, &agent, "", policy, &[]).expect(3, &[refused, what, said, "--force"]);
            apply(&site, &agent, SSH, policy, &[]).expect(3, &["the policy would cut", "--force"]);
            let told = agent.swap_refused(policy);
            assert!(told.contains(refused) && told.contains(said), "{told}");
            assert_eq!(in_force(&agent), before);
        }
        agent.ask(&["port", "drop", "8443"]).expect(3, &[refused, "(`8443`)"]);
        agent.ask(&["port", "drop", "2005/udp"]).expect(3, &[refused, "2005"]);
        assert_eq!(in_force(&agent), before);
        assert_in_force(&site, &agent);

        // Somebody may always get in; if it is known who it is, they have to.
        let office = policy()
            + &ssh_rule("office", "\"pass\"", "src = \"192.0.2.0/24\"\n")
            + &ssh_rule("rest", "\"drop\"", "");
        apply(&site, &agent, "", &office, &[]).expect(0, &[]);
        agent.apply(&policy(), &[]);
        let elsewhere = "198.51.100.7 51000 198.51.100.1 2222";
        apply(&site, &agent, elsewhere, &office, &[])
            .expect(3, &[refused, "(`ssh`)", "rule `rest`"]);

        // Forced once, it is neither undone nor repeated without being asked.
        apply(&site, &agent, "", &no_ssh(), &["--force"]).expect(0, &[]);
        agent.kill();
        agent.resume();
        assert_eq!(in_force(&agent).1, no_ssh());
        agent.ask(&["rollback"]).expect(0, &[]);
        agent.ask(&["rollback"]).expect(3, &[refused, "rule `no-ssh`"]);
        assert_in_force(&site, &agent);
    });
}

#[test]
fn what_cannot_be_protected_is_told_at_the_start() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let policy = policy_file(directory.path(), &policy());
        for (entry, said) in [
            ("\"sshd-of-mine\"", "sshd-of-mine"),
            ("70000", "protect"),
            ("0", "`0`"),
            ("\"tcp 300.1.1.1 -> :22\"", "300.1.1.1"),
            ("\"tcp -> 192.0.2.1\"", "write a TCP port"),
            ("{ port = 22 }", "protect"),
            ("true", "protect"),
        ] {
            let config =
                settings(&directory, &format!("# ours\nprotect = [\n  \"ssh\",\n  {entry},\n]\n"));
            let start =
                ["agent", "--policy", policy.to_str().unwrap(), "--config", &config, "--ephemeral"];
            let outcome = run(&site.host, &start);
            outcome.expect(2, &[said, "agent.toml", "at line "]);
            assert_no_pins();
        }
    });
}

#[test]
fn on_the_device_below_a_vlan_it_is_the_tagged_packet_that_counts() {
    sandbox(|| {
        let site = Site::quiet();
        let lower = &site.cable.right;
        let vlan =
            match Device::create(&site.host, "uplink.12", VirtualKind::Vlan { lower, id: 12 }) {
                // The kernels that `cargo xtask vm` boots know it.
                Err(error) if error.kind() == ErrorKind::Unsupported && !is_slow() => {
                    return skip(error);
                }
                vlan => vlan.unwrap(),
            };
        vlan.add_address(Ipv4Addr::new(203, 0, 113, 1), 24).unwrap();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let tagged = "203.0.113.7 51000 203.0.113.1 22";
        let cut = |vlan: &str| policy() + &ssh_rule("cut", "\"drop\"", &format!("vlan = {vlan}\n"));
        for vlan in ["12", "\"10-20\"", "[\"untagged\", 12]"] {
            apply(&site, &agent, tagged, &cut(vlan), &[])
                .expect(3, &[REFUSED, "vlan 12", "on uplink"]);
        }
        apply(&site, &agent, tagged, &no_ssh(), &[]).expect(3, &[REFUSED, "vlan 12"]);
        for vlan in ["\"untagged\"", "13", "\"13-4094\""] {
            let_through(&site, &agent, tagged, &cut(vlan));
        }
        let_through(&site, &agent, SSH, &cut("12"));
        apply(&site, &agent, SSH, &cut("\"untagged\""), &[]).expect(3, &[REFUSED]);
    });
}

#[test]
fn on_a_bridges_port_it_is_what_the_bridge_gets() {
    sandbox(|| {
        let site = Site::quiet();
        let bridge = match Device::create(&site.host, "bridge", VirtualKind::Bridge) {
            Err(error) if error.kind() == ErrorKind::Unsupported && !is_slow() => {
                return skip(error);
            }
            bridge => bridge.unwrap(),
        };
        bridge.add_address(Ipv4Addr::new(203, 0, 113, 1), 24).unwrap();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let ssh = "203.0.113.7 51000 203.0.113.1 22";
        let_through(&site, &agent, ssh, &no_ssh());
        site.cable.right.join(&bridge).unwrap();
        apply(&site, &agent, ssh, &no_ssh(), &[]).expect(3, &[REFUSED, "on uplink"]);
    });
}

/// Whoever asks without a command says where from.
#[test]
fn over_the_socket_it_is_a_field() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let request = |ssh: &str, force: bool| {
            let body =
                serde_json::json!({ "policy": no_ssh(), "ssh_connection": ssh, "force": force });
            send_json(&agent, "PUT", "/v1/policy", &body)
        };
        let reply = request(SSH, false);
        assert_eq!((reply.status, reply.refusal().0.as_str()), (409, "refused"));
        assert!(reply.refusal().1.contains("rule `no-ssh`"), "{:?}", reply.refusal());
        let query = SSH.replace(' ', "%20");
        let path = format!("/v1/policy?ssh_connection={query}");
        let body = no_ssh();
        let text =
            crate::http::ask(&agent, "PUT", &path, Some(("application/toml", body.as_bytes())));
        assert_eq!(text.status, 409);
        assert_eq!(get(&agent, "/v1/policy").json()["generation"], 1);
        assert_eq!(request(SSH, true).status, 200);
    });
}

/// Where an attached interface is called otherwise now, the operator is still there.
#[test]
fn a_renamed_interface_is_still_the_way_in() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        for arguments in ["uplink down", "uplink name wan0", "wan0 up"] {
            let mut ip = site.host.command("ip");
            ip.args(["link", "set", "dev"]).args(arguments.split(' '));
            assert!(ip.status().unwrap().success(), "{arguments}");
        }
        wait_until("there is a way", || {
            let route =
                site.host.command("ip").args(["route", "get", "198.51.100.7"]).output().unwrap();
            String::from_utf8_lossy(&route.stdout).contains("wan0")
        });
        let drop = ["port", "drop", "ssh"];
        ask(&site, &agent, SSH, &drop).expect(3, &[REFUSED, "wan0"]);
        ask(&site, &agent, SSH, &["port", "drop", "telnet"]).expect(0, &["still on wan0"]);
    });
}
