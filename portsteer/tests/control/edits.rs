//! Edits at the prompt: what they do to packets, to what is shown, and to files.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use portsteer::lab::ethtool::Offload;
use portsteer_testkit::{
    agent::{Agent, Outcome, Stats, binary},
    sandbox::sandbox,
    site::{HOST_V4, Site, wait_until},
};
use serde_json::json;

use crate::{
    HEAD, INSTANCE, NOBODY, assert_dropped, assert_in_force,
    http::{get, send_json},
    in_force, policy, rule,
};

/// The rules in force, by name.
fn rules(agent: &Agent) -> Vec<String> {
    let list = agent.ask_json(&["rule", "list"]);
    let rules = list.as_array().expect("a list").iter().enumerate();
    rules
        .map(|(index, rule)| {
            assert_eq!(rule["number"], index + 1);
            rule["name"].as_str().unwrap_or("-").to_owned()
        })
        .collect()
}

/// A datagram to this port arrives and is answered, and counted under the rule.
fn assert_passed(site: &Site, agent: &Agent, rule: &str, port: u16) {
    let before = agent.stats(&site.host).rule(rule);
    site.udp_echo(HOST_V4, port, 1);
    wait_until("it is counted", || agent.stats(&site.host).rule(rule) == before + 1);
}

#[test]
fn rules_come_move_and_go() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let file = agent.policy_path();
        let file = file.to_str().unwrap();
        agent.ask(&["diff", file]).expect(0, &["means the same"]);
        assert_in_force(&site, &agent);

        let add =
            ["rule", "add", "drop", "--protocol", "udp", "--dst-port", "2002", "--name", "extra"];
        agent.ask(&add).expect(0, &["in force: 2 rules"]);
        assert_dropped(&site, &agent, "extra", 2002);
        assert_in_force(&site, &agent);
        assert_eq!(rules(&agent), ["blocked", "extra"]);
        agent.ask(&["show"]).expect(0, &["name = \"extra\"", "dst_port = 2002"]);
        agent.ask(&["rule", "list"]).expect(0, &["#2", "extra", "udp dst_port 2002", "drop"]);
        agent.ask(&["diff", file]).expect(1, &["- ", "extra"]);

        agent.ask(&["rule", "move", "extra", "--first"]).expect(0, &[]);
        assert_eq!(rules(&agent), ["extra", "blocked"]);
        agent.ask(&["rule", "move", "#1", "--after", "blocked"]).expect(0, &[]);
        assert_eq!(rules(&agent), ["blocked", "extra"]);

        // The first that matches decides.
        let open =
            ["rule", "add", "pass", "--protocol", "udp", "--dst-port", "2000", "--name", "open"];
        agent.ask(&[&open[..], &["--before", "blocked"]].concat()).expect(0, &[]);
        assert_passed(&site, &agent, "open", 2000);
        agent.ask(&["rule", "move", "open", "--last"]).expect(0, &[]);
        assert_in_force(&site, &agent);
        agent.ask(&["rule", "remove", "open"]).expect(0, &["rule `open` is gone", "1 packets"]);
        agent.ask(&["rule", "remove", "2"]).expect(0, &["rule `extra` is gone", "1 packets"]);
        assert_in_force(&site, &agent);
        site.udp_echo(HOST_V4, 2002, 1);
        agent.ask(&["diff", file]).expect(0, &["means the same"]);

        // `blocked` was never touched, and has counted on.
        let stats = agent.stats(&site.host);
        assert_eq!((stats.rule("blocked"), stats.generation()), (4, 8));
    });
}

#[test]
fn ports_are_passed_dropped_and_steered() {
    sandbox(|| {
        let site = Site::quiet();
        // What is steered has to have its checksum, as on a wire.
        site.cable.left.set_offload(Offload::TxChecksum, false).unwrap();
        let policy = policy() + "[targets.cores]\ncpus = [0]\n";
        let agent = Agent::serve(&site.host, INSTANCE, &policy);
        agent
            .ask(&["port", "drop", "2003/udp", "2004-2005/udp", "--name", "closed"])
            .expect(0, &[]);
        for port in 2003..=2005 {
            assert_dropped(&site, &agent, "closed", port);
        }
        agent.ask(&["port", "pass", "2003/udp", "--name", "open"]).expect(0, &[]);
        assert_passed(&site, &agent, "open", 2003);
        // Behind the others it comes too late.
        agent
            .ask(&["port", "pass", "2004/udp", "--last", "--name", "late"])
            .expect(0, &["warning"]);
        assert_dropped(&site, &agent, "closed", 2004);
        agent.ask(&["port", "steer", "2005/udp", "cores", "--name", "steered"]).expect(0, &[]);
        assert_passed(&site, &agent, "steered", 2005);
        assert_eq!(agent.stats(&site.host).target("packets"), 1);

        agent.ask(&["port", "drop", "2006/udp", "2006", "http", "--name", "both"]).expect(0, &[]);
        assert_eq!(rules(&agent)[..3], ["both-udp", "both-tcp", "steered"]);
        assert_dropped(&site, &agent, "both-udp", 2006);
        site.tcp_silence(HOST_V4, 2006);
        site.tcp_silence(HOST_V4, 80);
        site.tcp_echo(HOST_V4, 81);
        let from = ["port", "drop", "2007/udp", "--src", "198.51.100.0/24,!198.51.100.7"];
        agent.ask(&[&from[..], &["--name", "others"]].concat()).expect(0, &[]);
        site.udp_echo(HOST_V4, 2007, 1);
        assert_in_force(&site, &agent);
    });
}

const LIST: &str = "list.txt";
/// Comments are of whatever bytes.
const LISTED: &[u8] = b"# whom nobody wants \xe9\n192.0.2.0/24 # a network\n\n2001:db8::/32\n";

/// UDP to port 2001 is dropped from those of a list, UDP to port 2002 from those of a file.
fn policy_with_sets() -> String {
    [
        &policy(),
        "[sets.inline]\naddresses = [\n  '192.0.2.1', # somebody\n]\n",
        &format!("[sets.kept]\nfile = \"{LIST}\"\n"),
        &rule("inline", 2001, "drop"),
        "src = \"@inline\"\n",
        &rule("kept", 2002, "drop"),
        "src = \"@kept\"\n",
    ]
    .concat()
}

/// A directory with a policy and the file of its set, put in force.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new(agent: &Agent) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = Self { directory };
        fs::write(place.path("p.toml"), policy_with_sets()).unwrap();
        fs::write(place.path(LIST), LISTED).unwrap();
        agent.ask(&["apply", &place.text("p.toml")]).expect(0, &["in force: 3 rules"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap()).into_owned()
    }
}

/// The client's address, and a prefix that it is in.
const CLIENT: &str = "198.51.100.7";
const CLIENTS: &str = "198.51.100.0/24";

#[test]
fn sets_grow_and_shrink() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        for (set, port) in [("inline", 2001), ("kept", 2002)] {
            site.udp_echo(HOST_V4, port, 1);
            agent.ask(&["set", "add", set, CLIENT]).expect(0, &["in force"]);
            assert_dropped(&site, &agent, set, port);
            agent.ask(&["show", "--set", set]).expect(0, &[CLIENT]);
            agent.ask(&["diff", &place.text("p.toml")]).expect(1, &[CLIENT]);
            // What it has is not repeated.
            let before = agent.ask(&["show", "--set", set]).stdout;
            agent.ask(&["set", "add", set, CLIENT, CLIENT]).expect(0, &[]);
            assert_eq!(agent.ask(&["show", "--set", set]).stdout, before);
            agent.ask(&["set", "remove", set, CLIENT]).expect(0, &[]);
            site.udp_echo(HOST_V4, port, 1);
            agent.ask(&["diff", &place.text("p.toml")]).expect(0, &[]);
        }
        assert_eq!(place.read(LIST), String::from_utf8_lossy(LISTED), "nothing was to be saved");
    });
}

/// Has `portsteer ARGUMENTS` read this text from standard input.
fn ask_with_input(site: &Site, agent: &Agent, arguments: &[&str], input: &Path) -> Outcome {
    let mut command = site.host.command("sh");
    command
        .args(["-c", "input=$1; shift; exec \"$0\" \"$@\" <\"$input\""])
        .arg(binary())
        .arg(input);
    command.args(arguments).args(["--instance", INSTANCE, "--socket"]).arg(agent.socket());
    Outcome::of(command.env("SSH_CONNECTION", ""))
}

#[test]
fn prefixes_are_read_from_standard_input() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        let many: String =
            (0..3_000).map(|n| format!("10.{}.{}.0/24\n", n / 256, n % 256)).collect();
        fs::write(place.path("many"), format!("# clients\n{CLIENTS} # of ours\n\n{many}")).unwrap();
        for (set, port, had) in [("inline", 2001, 1), ("kept", 2002, 2)] {
            let count = || agent.ask(&["show", "--set", set]).stdout.lines().count();
            ask_with_input(&site, &agent, &["set", "add", set, "-"], &place.path("many"))
                .expect(0, &["in force"]);
            assert_eq!(count(), had + 3_001);
            assert_dropped(&site, &agent, set, port);
            ask_with_input(&site, &agent, &["set", "remove", set, "-"], &place.path("many"))
                .expect(0, &["in force"]);
            assert_eq!(count(), had);
            site.udp_echo(HOST_V4, port, 1);
        }
        let before = in_force(&agent);
        fs::write(place.path("wrong"), "10.0.0.1\n10.0.0.256\n").unwrap();
        ask_with_input(&site, &agent, &["set", "add", "kept", "-"], &place.path("wrong"))
            .expect(2, &["standard input, line 2", "10.0.0.256"]);
        assert_eq!(in_force(&agent), before);
    });
}

#[test]
fn several_edits_are_made_together_or_not_at_all() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        let before = in_force(&agent);
        let add = json!({ "edit": "add-prefixes", "set": "kept", "prefixes": [CLIENT] });
        let remove = |rule: &str| json!({ "edit": "remove-rule", "rule": rule });
        let open = json!({
            "edit": "add-rule", "place": "first",
            "rule": { "name": "open", "protocol": ["udp"], "dst_port": ["2000"], "action": "pass" },
        });
        let gone = json!({ "edit": "remove-prefixes", "set": "kept", "prefixes": ["10.0.0.1"] });
        let unknown = json!({
            "edit": "add-rule", "rule": { "src": ["@unknown"], "action": "drop" },
        });
        for wrong in [remove("nobody"), gone, unknown] {
            let edits = json!({ "edits": [add, open, remove("inline"), wrong] });
            let reply = send_json(&agent, "POST", "/v1/edits", &edits);
            assert_eq!((reply.status, reply.refusal().0.as_str()), (422, "bad-input"));
            assert_eq!(in_force(&agent), before);
            assert_in_force(&site, &agent);
            site.udp_echo(HOST_V4, 2002, 1);
        }
        let edits = json!({ "edits": [add, open, remove("inline"), remove("blocked")] });
        let reply = send_json(&agent, "POST", "/v1/edits", &edits);
        assert_eq!(reply.status, 200);
        assert_eq!(in_force(&agent).0, before.0 + 1);
        assert_eq!(rules(&agent), ["open", "kept"]);
        assert_passed(&site, &agent, "open", 2000);
        assert_dropped(&site, &agent, "kept", 2002);
        drop(place);
    });
}

#[test]
fn wrong_edits_change_nothing_and_say_what_to_do() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        let before = in_force(&agent);
        for (arguments, said) in [
            (&["rule", "remove", "blokced"][..], &["blokced", "did you mean `blocked`"][..]),
            (&["rule", "remove", "#4"], &["#4", "3"]),
            (&["rule", "remove", "#0"], &["numbered from 1"]),
            (&["rule", "move", "blocked"], &["where to?", "--before RULE"]),
            (&["rule", "move", "blocked", "--after", "blocked"], &["itself"]),
            (&["rule", "move", "blocked", "--first", "--last"], &["cannot be used with"]),
            (&["rule", "add", "pas"], &["did you mean `pass`"]),
            (&["rule", "add", "steer=web"], &["web", "target"]),
            (&["rule", "add", "drop", "--name", "blocked"], &["#1", "already"]),
            (&["rule", "add", "drop", "--dst-port", "htps"], &["htps", "https"]),
            (&["rule", "add", "drop", "--dst-port", "90-80"], &["backwards", "80-90"]),
            (&["rule", "add", "drop", "--src", "@unknown"], &["unknown"]),
            (&["rule", "add", "drop", "--src", "10.0.0.1/8"], &["10.0.0.0/8"]),
            (&["rule", "add", "drop", "--protocol", "icmp", "--dst-port", "1"], &["no ports"]),
            (&["set", "add", "unknown", CLIENT], &["no set `unknown`", "`inline`, `kept`"]),
            (&["set", "add", "inline", "10.0.0.256"], &["10.0.0.256"]),
            (&["set", "add", "kept", "10.0.0.1/8"], &["10.0.0.0/8"]),
            (&["set", "add", "kept", "-4"], &["-4"]),
            (&["set", "remove", "inline", CLIENT], &["does not have `198.51.100.7`"]),
            (&["set", "remove", "kept", CLIENT], &["does not have `198.51.100.7`"]),
            (&["set", "remove", "kept", "192.0.2.1"], &["only as part of `192.0.2.0/24`"]),
            (&["port", "drop", "70000"], &["70000"]),
            (&["port", "drop", "80/ftp"], &["ftp"]),
            (&["port", "drop", "80/"], &["protocol"]),
            (&["port", "steer", "80"], &["the target is missing"]),
            (&["port", "close", "80"], &["close"]),
            (&["port", "drop", "80", "--save", "--confirm", "60s"], &["not for a file yet"]),
            (&["port", "drop", "80", "--save=/nowhere/p.toml"], &["/nowhere/p.toml", "No such"]),
        ] {
            agent.ask(arguments).expect(2, said);
            assert_eq!(in_force(&agent), before, "{arguments:?}");
        }
        assert_in_force(&site, &agent);
        assert_eq!(place.read("p.toml"), policy_with_sets());
        assert_eq!(place.read(LIST), String::from_utf8_lossy(LISTED));
    });
}

#[test]
fn edits_are_saved_with_everything_else_as_it_was() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        // The policy is a link, and its set's file beside the link; both are somebody else's.
        fs::create_dir(place.path("elsewhere")).unwrap();
        fs::rename(place.path("p.toml"), place.path("elsewhere/real.toml")).unwrap();
        symlink("elsewhere/real.toml", place.path("p.toml")).unwrap();
        let dressed =
            |text: String| text.replace("version = 1", "# ours\r\n\r\nversion  =  1 # the first");
        fs::write(place.path("p.toml"), dressed(policy_with_sets())).unwrap();
        let of = |name: &str| {
            let it = fs::metadata(place.path(name)).unwrap();
            (it.uid(), it.gid(), it.mode() & 0o7777)
        };
        for (name, mode) in [("elsewhere/real.toml", 0o640), (LIST, 0o604)] {
            chown(place.path(name), Some(NOBODY), Some(4711)).unwrap();
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        // Where new content is written first, somebody has a link to what is not to be written to.
        fs::write(place.path("victim"), "mine").unwrap();
        symlink(place.path("victim"), place.path("elsewhere/real.toml.portsteer-new")).unwrap();
        agent.ask(&["apply", &place.text("p.toml")]).expect(0, &[]);
        let shown = agent.ask_json(&["show"]);
        assert_eq!(shown["path"], place.text("p.toml").as_str());
        assert_in_force(&site, &agent);

        let saved = "saved to";
        let text = || fs::read_to_string(place.path("elsewhere/real.toml")).unwrap();
        agent.ask(&["port", "drop", "2003/udp", "--name", "more", "--save"]).expect(0, &[saved]);
        let new =
            "[[rules]]\nname = \"more\"\nprotocol = \"udp\"\ndst_port = 2003\naction = \"drop\"\n";
        let expected =
            dressed(policy_with_sets()).replacen("[[rules]]", &format!("{new}\n[[rules]]"), 1);
        let plain = |text: &str| text.replace(['\r', '\n'], "");
        assert_eq!(plain(&text()), plain(&expected));
        assert!(text().starts_with("# ours\r\n\r\nversion  =  1 # the first"), "{}", text());
        agent.ask(&["set", "add", "inline", CLIENT, "--save"]).expect(0, &[saved]);
        assert_eq!(text().matches("'192.0.2.1', # somebody").count(), 1, "{}", text());
        assert_eq!(text().matches("'198.51.100.7'").count(), 1, "{}", text());

        let before = text();
        agent.ask(&["set", "add", "kept", CLIENT, "--save"]).expect(0, &[saved, LIST]);
        assert_eq!(text(), before);
        let listed = [LISTED, b"198.51.100.7\n"].concat();
        assert_eq!(fs::read(place.path(LIST)).unwrap(), listed);
        agent.ask(&["rule", "move", "more", "--last", "--save"]).expect(0, &[]);
        agent.ask(&["rule", "remove", "more", "--save"]).expect(0, &[]);
        agent.ask(&["set", "remove", "inline", "192.0.2.1", "--save"]).expect(0, &[]);
        agent.ask(&["set", "remove", "kept", "2001:db8::/32", "--save"]).expect(0, &[]);

        // All as it was, and the file means what is in force.
        assert!(place.path("p.toml").is_symlink());
        assert_eq!(of("elsewhere/real.toml"), (NOBODY, 4711, 0o640));
        assert_eq!(of(LIST), (NOBODY, 4711, 0o604));
        assert_eq!(place.read("victim"), "mine");
        let mut names: Vec<_> = [place.path("."), place.path("elsewhere")]
            .iter()
            .flat_map(|directory| fs::read_dir(directory).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["elsewhere", LIST, "p.toml", "real.toml", "victim"]);
        agent.ask(&["diff", &place.text("p.toml")]).expect(0, &["means the same"]);
        for (rule, port) in [("inline", 2001), ("kept", 2002), ("blocked", 2000)] {
            assert_dropped(&site, &agent, rule, port);
        }
        assert_eq!(agent.stats(&site.host).rule("blocked"), 2);
    });
}

#[test]
fn what_the_file_cannot_have_is_not_in_force_either() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        let before = in_force(&agent);
        let refused = |arguments: &[&str], said: &[&str]| {
            let files = (place.read("p.toml"), place.read(LIST));
            agent.ask(&[arguments, &["--save"]].concat()).expect(2, said);
            assert_eq!(in_force(&agent), before, "{arguments:?}");
            assert_eq!((place.read("p.toml"), place.read(LIST)), files, "{arguments:?}");
        };
        let drift = |text: String| fs::write(place.path("p.toml"), text).unwrap();
        drift(policy_with_sets().replace("\"blocked\"", "\"renamed\""));
        refused(&["rule", "remove", "blocked"], &["cannot be saved to", "no rule `blocked`"]);
        drift(policy_with_sets().replace("'192.0.2.1'", "'192.0.2.2'"));
        refused(&["set", "remove", "inline", "192.0.2.1"], &["cannot be saved to", "192.0.2.1"]);
        drift(policy_with_sets().replace("[sets.kept]", "[sets.other]"));
        refused(&["set", "add", "kept", CLIENT], &["cannot be saved to", "no set `kept`"]);
        drift(policy_with_sets() + "action = \"twice\"\n");
        refused(&["rule", "remove", "blocked"], &["cannot be saved to", "portsteer check"]);
        drift(policy_with_sets().replace("2001", "70000"));
        refused(&["rule", "remove", "blocked"], &["70000"]);
        drift(policy_with_sets());
        fs::write(place.path(LIST), "192.0.2.0/24\n").unwrap();
        refused(
            &["set", "remove", "kept", "2001:db8::/32"],
            &["cannot be saved to", "2001:db8::/32"],
        );
        fs::write(place.path(LIST), "nonsense\n").unwrap();
        refused(&["rule", "remove", "blocked"], &["nonsense"]);
        fs::remove_file(place.path(LIST)).unwrap();
        agent.ask(&["set", "add", "kept", CLIENT, "--save"]).expect(2, &[LIST, "No such file"]);
        fs::write(place.path(LIST), LISTED).unwrap();
        fs::remove_file(place.path("p.toml")).unwrap();
        agent.ask(&["port", "drop", "80", "--save"]).expect(2, &["p.toml", "--save=FILE"]);
        assert_eq!(in_force(&agent), before);
        drift(policy_with_sets());

        // What the agent refuses is not in the file either.
        let (files, before) = (place.read("p.toml"), in_force(&agent));
        agent.ask(&["apply", &place.text("p.toml"), "--confirm", "1h"]).expect(0, &[]);
        agent.ask(&["port", "drop", "80", "--save"]).expect(3, &["on trial"]);
        assert_eq!(place.read("p.toml"), files);
        agent.ask(&["rollback"]).expect(0, &[]);
        assert_eq!(in_force(&agent).1, before.1);

        // Drift that the edit does not touch stays.
        drift(policy_with_sets().replace("2001", "2009"));
        agent
            .ask(&["port", "drop", "2003/udp", "--name", "more", "--save"])
            .expect(0, &["saved to"]);
        assert!(place.read("p.toml").contains("dst_port = 2009"));
        assert!(place.read("p.toml").contains("dst_port = 2003"));
        assert_dropped(&site, &agent, "more", 2003);
    });
}

#[test]
fn edits_are_saved_into_another_file() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        let other = format!("--save={}", place.text("other.toml"));
        fs::write(place.path("other.toml"), HEAD.replace("native", "auto")).unwrap();
        agent
            .ask(&["port", "drop", "2003/udp", "--name", "more", &other])
            .expect(0, &["other.toml"]);
        assert_eq!(place.read("p.toml"), policy_with_sets());
        assert!(place.read("other.toml").contains("name = \"more\""));
        assert_dropped(&site, &agent, "more", 2003);

        // A policy that came without a file has none to be saved to.
        let bare = json!({ "policy": policy() });
        assert_eq!(send_json(&agent, "PUT", "/v1/policy", &bare).status, 200);
        let before = in_force(&agent);
        agent
            .ask(&["port", "drop", "80", "--save"])
            .expect(2, &["(control socket)", "--save=FILE"]);
        assert_eq!(in_force(&agent), before);
    });
}

/// The agent's policy is named relative to where the agent was started, and the command runs elsewhere.
#[test]
fn edits_are_saved_wherever_the_agent_was_started() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("p.toml"), policy()).unwrap();
        let mut command = site.host.command(binary());
        command.args(["agent", "--policy", "p.toml", "--socket", "s", "--state-dir", "state"]);
        let log = fs::File::create(path("log")).unwrap();
        let mut child = command.current_dir(directory.path()).stderr(log).spawn().unwrap();
        wait_until("it is in force", || {
            fs::read_to_string(path("log")).unwrap().contains("in force:")
        });
        let socket = path("s").display().to_string();
        let save = ["port", "drop", "2003/udp", "--save", "--socket", &socket];
        let mut command = site.host.command(binary());
        command.args(save).env("SSH_CONNECTION", "").current_dir("/");
        Outcome::of(&mut command).expect(0, &["saved to"]);
        assert!(fs::read_to_string(path("p.toml")).unwrap().contains("dst_port = 2003"));
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn edits_outlive_the_agent() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        assert_in_force(&site, &agent);
        agent.ask(&["rule", "remove", "inline"]).expect(0, &[]);
        agent.ask(&["port", "drop", "2003/udp", "--name", "more"]).expect(0, &[]);
        for (what, prefix) in [
            ("add", CLIENTS),
            ("add", "10.0.0.0/8"),
            ("remove", "2001:db8::/32"),
            ("remove", CLIENTS),
            ("add", CLIENT),
        ] {
            agent.ask(&["set", what, "kept", prefix]).expect(0, &[]);
        }
        assert_dropped(&site, &agent, "kept", 2002);
        let known = |agent: &Agent| {
            let set = agent.ask(&["show", "--set", "kept"]);
            (in_force(agent), set.expect(0, &[CLIENT]).stdout.clone())
        };
        let before = known(&agent);
        // The agent has all that it needs.
        drop(place);
        for round in 1..=2 {
            agent.kill();
            agent.resume();
            assert_eq!(known(&agent), before);
            assert_eq!(get(&agent, "/v1/status").json()["agent"]["problems"], json!([]));
            assert_dropped(&site, &agent, "kept", 2002);
            assert_dropped(&site, &agent, "more", 2003);
            assert_in_force(&site, &agent);
            let stats = Stats::read(&site.host, INSTANCE);
            assert_eq!((stats.rule("blocked"), stats.rule("kept")), (1 + round, 1 + round));
        }
        // And goes on from there, to the same end.
        agent.ask(&["set", "remove", "kept", CLIENT]).expect(0, &[]);
        site.udp_echo(HOST_V4, 2002, 1);
        agent.ask(&["rollback"]).expect(0, &[]);
        assert_dropped(&site, &agent, "kept", 2002);
    });
}

/// Numbers are those of the policy in force: in the file they may mean something else.
#[test]
fn what_has_another_number_in_the_file_is_not_mistaken() {
    sandbox(|| {
        let site = Site::quiet();
        let text = policy()
            + "[[rules]]\nprotocol = \"udp\"\ndst_port = 2003\naction = \"drop\"\n"
            + &rule("last", 2004, "drop");
        let agent = Agent::serve(&site.host, INSTANCE, &text);
        let read = || fs::read_to_string(agent.policy_path()).unwrap();
        agent.ask(&["port", "drop", "2005/udp", "--name", "top"]).expect(0, &[]);
        assert_eq!(rules(&agent), ["top", "blocked", "-", "last"]);
        // By its name, #1 is not in the file; neither is it what the file has at the same place.
        for edit in [&["rule", "remove", "1"][..], &["rule", "move", "1", "--last"]] {
            let said = ["cannot be saved to", "there is no rule `top`"];
            agent.ask(&[edit, &["--save"]].concat()).expect(2, &said);
        }
        // One without a name has only its number.
        for edit in [
            &["rule", "remove", "#3"][..],
            &["rule", "add", "pass", "--dst-port", "2006", "--before", "3"],
        ] {
            let said = ["its rule #3 is not the one that is #3 in force", "udp dst_port 2003"];
            agent.ask(&[edit, &["--save"]].concat()).expect(2, &said);
        }
        assert_eq!((rules(&agent).len(), read()), (4, text.clone()));
        assert_in_force(&site, &agent);

        // One with a name is meant wherever the file has it.
        agent.ask(&["rule", "move", "4", "--before", "#2", "--save"]).expect(0, &["saved to"]);
        assert_eq!(rules(&agent), ["top", "last", "blocked", "-"]);
        assert!(read().find("\"last\"").unwrap() < read().find("\"blocked\"").unwrap());
        agent.ask(&["rule", "remove", "top"]).expect(0, &[]);
        agent.ask(&["rule", "remove", "3", "--save"]).expect(0, &["saved to"]);
        assert_eq!(rules(&agent), ["last", "blocked"]);
        agent.ask(&["diff", agent.policy_path().to_str().unwrap()]).expect(0, &[]);

        // A number that is also a name is nobody's.
        agent.ask(&["rule", "add", "drop", "--dst-port", "2007", "--name", "1"]).expect(0, &[]);
        agent.ask(&["rule", "remove", "1"]).expect(2, &["is the name of rule #3", "`name=1`"]);
        agent.ask(&["rule", "remove", "name=1"]).expect(0, &[]);
        assert_eq!(rules(&agent), ["last", "blocked"]);
    });
}

#[test]
fn edits_that_are_saved_at_the_same_time_are_all_saved() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        fs::write(place.path("p.toml"), policy_with_sets()).unwrap();
        agent.ask(&["apply", &place.text("p.toml")]).expect(0, &[]);
        std::thread::scope(|scope| {
            for number in 0..8 {
                let agent = &agent;
                scope.spawn(move || {
                    let address = format!("198.51.100.{number}");
                    agent.ask(&["set", "add", "kept", &address, "--save"]).expect(0, &["saved"]);
                    let port = format!("{}/udp", 2100 + number);
                    agent.ask(&["port", "drop", &port, "--save"]).expect(0, &["saved"]);
                });
            }
        });
        agent.ask(&["diff", &place.text("p.toml")]).expect(0, &["means the same"]);
        assert_eq!(place.read("p.toml").matches("dst_port = 21").count(), 8);
    });
}

#[test]
fn an_edit_that_changes_nothing_is_no_step() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let place = Place::new(&agent);
        fs::write(place.path("p.toml"), policy_with_sets()).unwrap();
        agent.ask(&["apply", &place.text("p.toml")]).expect(0, &[]);
        let generation = agent.ask_json(&["show"])["generation"].clone();
        for edit in [
            &["set", "add", "kept", "2001:db8::/32"][..],
            &["set", "add", "inline", "192.0.2.1"],
            &["rule", "move", "1", "--first"],
        ] {
            agent.ask(edit).expect(0, &["nothing is changed"]);
        }
        assert_eq!(agent.ask_json(&["show"])["generation"], generation);
        agent.ask(&["rollback"]).expect(0, &["in force"]);
        assert_eq!(agent.ask(&["show"]).stdout, policy());
    });
}
