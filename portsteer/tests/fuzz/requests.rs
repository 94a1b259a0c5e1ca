//! Requests at the control socket.

use portsteer_testkit::{
    agent::Agent,
    fuzzing::request::{request, still_answers},
    sandbox::sandbox,
    site::Site,
};

use crate::inputs;

#[test]
fn requests_are_answered_or_not_heard() {
    sandbox(|| {
        let site = Site::quiet();
        let policy = "version = 1\ninterfaces = [\"uplink\"]\n";
        let agent = Agent::serve(&site.host, "main", policy);
        for (name, input) in inputs::of("request") {
            eprintln!("{name}");
            request(&agent.socket(), &input);
        }
        still_answers(&agent.socket());
        assert!(!agent.log().contains("panicked"), "{}", agent.log());
    });
}
