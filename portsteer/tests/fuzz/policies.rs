//! Policy files.

use portsteer_testkit::fuzzing::policy::policy;

use crate::inputs;

#[test]
fn policy_files_are_refused_or_understood() {
    for (name, input) in inputs::of("policy") {
        eprintln!("{name}");
        policy(&input);
    }
}
