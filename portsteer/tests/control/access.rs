//! Who may ask: the sockets' places, owners and modes, and what may be asked at the second one.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
};

use portsteer_testkit::{
    agent::{Agent, policy_file, run},
    sandbox::{assert_no_pins, sandbox},
    site::{Site, wait_until},
};

use crate::{
    INSTANCE, NOBODY, Public, assert_all_off, assert_in_force,
    http::{connect, read},
    in_force, policy,
};

/// A group that nobody on this machine is likely to be in.
const GROUP: u32 = 47_110;

/// Owner, group and mode of a socket.
fn access(path: &Path) -> (u32, u32, u32) {
    let it = fs::symlink_metadata(path).unwrap();
    assert!(it.file_type().is_socket(), "{it:?}");
    (it.uid(), it.gid(), it.mode() & 0o7777)
}

/// An agent whose sockets are where everybody may go, with these settings.
fn serve(site: &Site, public: &Public, settings: &str) -> (Agent, PathBuf, PathBuf) {
    let config = public.path("agent.toml");
    let (socket, monitor) = (public.path("sockets/here/agent.sock"), public.path("monitor.sock"));
    let settings = settings.replace("MONITOR", monitor.to_str().unwrap());
    fs::write(&config, format!("socket = {socket:?}\n{settings}")).unwrap();
    let state = public.path("state");
    let arguments = ["--config", config.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
    let mut agent = Agent::launch(&site.host, INSTANCE, &policy(), &arguments);
    agent.wait_for_log("in force:", 1);
    (agent, socket, monitor)
}

#[test]
fn root_alone_may_ask_unless_told_otherwise() {
    sandbox(|| {
        let site = Site::quiet();
        let public = Public::new();
        for (settings, expected, others) in [
            ("", (0, 0, 0o600), [false, false]),
            ("socket_group = \"47110\"\n", (0, GROUP, 0o660), [true, false]),
            (
                "socket_group = \"47110\"\nsocket_mode = \"0600\"\n",
                (0, GROUP, 0o600),
                [false, false],
            ),
            ("socket_mode = \"0666\"\n", (0, 0, 0o666), [true, true]),
            // Without the right to write nobody may connect.
            (
                "socket_group = \"47110\"\nsocket_mode = \"0644\"\n",
                (0, GROUP, 0o644),
                [false, false],
            ),
        ] {
            let (agent, socket, _) = serve(&site, &public, settings);
            assert_eq!(access(&socket), expected, "{settings}");
            let text = socket.to_str().unwrap();
            for (group, may) in [(GROUP, others[0]), (NOBODY, others[1])] {
                for command in [
                    &["show"][..],
                    &["status"],
                    &["stats"],
                    &["rule", "add", "drop", "--src", "10.0.0.0/8"],
                    &["rule", "remove", "#2"],
                ] {
                    let command = [command, &["--socket", text]].concat();
                    let outcome = public.run_as_nobody(&site, group, &command);
                    match may {
                        true => outcome.expect(0, &[]),
                        false => outcome.expect(3, &["Permission denied", "`socket_group`"]),
                    };
                }
            }
            assert_in_force(&site, &agent);
            run(&site.host, &["show", "--socket", text]).expect(0, &["blocked"]);
            assert_eq!(agent.end(libc::SIGINT).0.code(), Some(0));
            assert!(!socket.exists(), "it goes with the agent");
            assert_all_off(&site);
        }
    });
}

#[test]
fn the_socket_of_an_agent_that_was_told_nothing_is_for_root() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        assert_eq!(access(&agent.socket()), (0, 0, 0o600));
    });
}

#[test]
fn at_the_socket_for_monitoring_nothing_can_be_changed() {
    sandbox(|| {
        let site = Site::quiet();
        let public = Public::new();
        let settings = "monitor_socket = \"MONITOR\"\nmonitor_socket_group = \"47110\"\n";
        let (agent, socket, monitor) = serve(&site, &public, settings);
        assert_eq!(access(&socket), (0, 0, 0o600));
        assert_eq!(access(&monitor), (0, GROUP, 0o660));
        let ask = |socket: &Path, method: &str, path: &str, body: &str| {
            use std::io::Write as _;
            let mut stream = connect(socket);
            let len = body.len();
            // At once: what is refused is not read to its end.
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes()).unwrap();
            read(&mut stream).unwrap()
        };
        for path in ["/v1/policy", "/v1/stats", "/v1/openapi.json"] {
            let answers = [&socket, &monitor].map(|socket| ask(socket, "GET", path, ""));
            assert_eq!(answers[1].status, 200);
            assert_eq!(answers[0].json(), answers[1].json(), "{path}");
        }
        assert_eq!(ask(&monitor, "GET", "/v1/status", "").json()["agent"]["state"], "in force");
        assert_eq!(ask(&monitor, "GET", "/v1/sets/none", "").status, 404);
        let other = policy().replace("2000", "2002");
        for (method, path, body) in [
            ("PUT", "/v1/policy", other.as_str()),
            ("PUT", "/v1/policy?force=true", &other),
            ("POST", "/v1/policy", &other),
            ("DELETE", "/v1/policy", ""),
            ("POST", "/v1/confirm", ""),
            ("POST", "/v1/rollback", ""),
            ("POST", "/v1/detach", ""),
            ("POST", "/v1/edits", "{\"edits\":[{\"edit\":\"remove-rule\",\"rule\":\"#1\"}]}"),
            ("POST", "/v1/diff", &other),
            ("POST", "/v1/status", ""),
        ] {
            let reply = ask(&monitor, method, path, body);
            assert_eq!(reply.status, 405, "{method} {path}");
            assert!(!reply.refusal().1.is_empty());
        }
        let monitor = monitor.to_str().unwrap();
        for (command, said) in [
            (&["show"][..], "blocked"),
            (&["status"], "uplink"),
            (&["stats"], "blocked"),
            (&["rule", "list"], "blocked"),
        ] {
            let command = [command, &["--socket", monitor]].concat();
            public.run_as_nobody(&site, GROUP, &command).expect(0, &[said]);
            public.run_as_nobody(&site, NOBODY, &command).expect(3, &["Permission denied"]);
        }
        for command in
            [&["detach"][..], &["rule", "remove", "blocked"], &["rollback"], &["confirm"]]
        {
            let command = [command, &["--socket", monitor]].concat();
            let said = ["at this socket nothing can be changed", "another one"];
            public.run_as_nobody(&site, GROUP, &command).expect(3, &said);
            run(&site.host, &command).expect(3, &said);
        }
        let other = ["status", "--instance", "other", "--socket", monitor];
        run(&site.host, &other).expect(3, &["the agent here runs instance `main`"]);
        assert_in_force(&site, &agent);
        assert_eq!(agent.end(libc::SIGTERM).0.code(), Some(0));
        assert!(!Path::new(monitor).exists(), "it goes with the agent");
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not_stolen() {
    sandbox(|| {
        let site = Site::quiet();
        let mut agent = Agent::serve(&site.host, INSTANCE, &policy());
        let socket = agent.socket();
        agent.kill();
        assert!(socket.exists(), "nobody has removed it");
        agent.resume();
        assert_in_force(&site, &agent);
        let before = in_force(&agent);

        let directory = tempfile::tempdir().unwrap();
        let file = policy_file(directory.path(), &policy().replace("uplink", "lo"));
        let state = directory.path().join("state").display().to_string();
        let start = |instance: &str, socket: &Path| {
            let arguments = [
                "agent",
                "--instance",
                instance,
                "--policy",
                file.to_str().unwrap(),
                "--state-dir",
                &state,
                "--socket",
                socket.to_str().unwrap(),
            ];
            run(&site.host, &arguments)
        };
        start("other", &socket).expect(3, &["another agent listens there", "--socket"]);
        // Of the same instance there is one agent, wherever it listens.
        start(INSTANCE, &directory.path().join("s")).expect(3, &["another"]);
        assert_eq!(in_force(&agent), before);
        assert_in_force(&site, &agent);
        assert!(!Path::new("/sys/fs/bpf/portsteer/other").exists());

        // Whoever has put another socket there keeps it.
        fs::remove_file(&socket).unwrap();
        let mut arguments = vec!["--state-dir", &state, "--socket", socket.to_str().unwrap()];
        let generic = policy().replace("\"uplink\"", "\"lo\"").replace("native", "generic");
        let mut other = Agent::launch(&site.host, "other", &generic, &arguments);
        other.wait_for_log("in force:", 1);
        arguments.clear();
        assert_eq!(agent.stop(libc::SIGTERM).code(), Some(0));
        assert!(socket.exists(), "it is the other one's");
        drop(other);
    });
}

#[test]
fn what_is_no_socket_is_left_alone() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let file = policy_file(directory.path(), &policy());
        fs::write(path("file"), "mine").unwrap();
        fs::create_dir(path("directory")).unwrap();
        symlink(path("file"), path("link")).unwrap();
        symlink(path("nowhere"), path("dangling")).unwrap();
        let datagrams = UnixDatagram::bind(path("datagrams")).unwrap();
        let (state, policy) = (path("state"), file.to_str().unwrap());
        for name in ["file", "directory", "link", "dangling", "datagrams", "file/below"] {
            let socket = path(name);
            let arguments = [
                "agent",
                "--policy",
                policy,
                "--state-dir",
                state.to_str().unwrap(),
                "--socket",
                socket.to_str().unwrap(),
            ];
            run(&site.host, &arguments).expect(3, &["the control socket", name, "--socket"]);
            assert_no_pins();
        }
        assert_eq!(fs::read_to_string(path("file")).unwrap(), "mine");
        assert!(path("link").is_symlink() && path("dangling").is_symlink());
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"still there?", path("datagrams")).unwrap();
        assert_eq!(datagrams.recv(&mut [0; 64]).unwrap(), 12);
        assert_all_off(&site);
    });
}

#[test]
fn settings_that_make_no_sense_are_bad_input() {
    sandbox(|| {
        let site = Site::quiet();
        let directory = tempfile::tempdir().unwrap();
        let file = policy_file(directory.path(), &policy());
        let (config, state) = (directory.path().join("agent.toml"), directory.path().join("state"));
        let start = || {
            let arguments = [
                "agent",
                "--policy",
                file.to_str().unwrap(),
                "--state-dir",
                state.to_str().unwrap(),
                "--config",
                config.to_str().unwrap(),
            ];
            run(&site.host, &arguments)
        };
        start().expect(2, &["agent.toml", "No such file"]);
        for (settings, said) in [
            ("sockets = \"a\"\n", &["at line 2", "unknown field `sockets`"][..]),
            ("socket = 1\n", &["at line 2", "socket"]),
            ("socket_mode = \"0999\"\n", &["at line 2", "`0999`", "octal"]),
            ("socket_mode = 600\n", &["at line 2", "socket_mode"]),
            ("socket_mode = \"2777\"\n", &["at line 2", "`2777`"]),
            ("monitor_socket = [\n", &["at line "]),
            ("socket = \"a\"\nsocket = \"b\"\n", &["at line 3", "duplicate key"]),
            ("socket_group = \"no-such-group\"\n", &["there is no group `no-such-group`"]),
        ] {
            fs::write(&config, format!("# ours\n{settings}")).unwrap();
            start().expect(2, said);
            assert_no_pins();
        }
        fs::write(&config, "monitor_socket = \"/proc/none\"\n").unwrap();
        start().expect(3, &["the control socket /proc/none"]);
        assert_no_pins();
        wait_until("nothing listens", || !Path::new("/run/portsteer/agent.sock").exists());
        assert_all_off(&site);
        // As is, nothing is missing.
        fs::write(&config, "").unwrap();
        let state = state.to_str().unwrap();
        let arguments = ["--config", config.to_str().unwrap(), "--state-dir", state];
        let mut agent = Agent::launch(&site.host, INSTANCE, &policy(), &arguments);
        agent.wait_for_log("in force:", 1);
        assert_eq!(access(Path::new("/run/portsteer/agent.sock")).2, 0o600);
        let mode = fs::metadata("/run/portsteer").unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0, "others may put nothing beside it");
    });
}

/// Where a policy came from is what its client says: root writes there only if it was root who said so.
#[test]
fn root_saves_nothing_where_another_client_says() {
    sandbox(|| {
        let site = Site::quiet();
        let public = Public::new();
        let (agent, socket, _) = serve(&site, &public, "socket_mode = \"0666\"\n");
        let socket = socket.to_str().unwrap();
        let file = public.path("theirs.toml");
        fs::write(&file, policy()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let file = file.to_str().unwrap();
        let save = ["port", "drop", "2003/udp", "--save", "--socket", socket];
        let apply = ["apply", file, "--socket", socket];
        public.run_as_nobody(&site, NOBODY, &apply).expect(0, &["in force"]);
        let said = ["only a client has said", file, "--save=FILE"];
        run(&site.host, &save).expect(2, &said);
        assert_eq!(fs::read_to_string(file).unwrap(), policy());
        // Nor after the agent was replaced.
        agent.end(libc::SIGTERM);
        let [state, config] = ["state", "agent.toml"].map(|name| public.path(name));
        let (state, config) = (state.to_str().unwrap(), config.to_str().unwrap());
        let arguments = ["--config", config, "--state-dir", state, "--resume"];
        let mut agent = Agent::launch(&site.host, INSTANCE, &policy(), &arguments);
        agent.wait_for_log("in force:", 1);
        run(&site.host, &save).expect(2, &said);
        assert_eq!(fs::read_to_string(file).unwrap(), policy());
        run(&site.host, &apply).expect(0, &["in force"]);
        run(&site.host, &save).expect(0, &["saved to"]);
        assert!(fs::read_to_string(file).unwrap().contains("2003"));
    });
}
