//! Targets that cannot do all that is asked of them.

use portsteer_common::steering::SPREAD_PLACES;

use crate::policy::{Policy, TargetKind, diagnostic::Diagnostic};

pub(super) fn too_many_cpus(policy: &Policy) -> impl Iterator<Item = Diagnostic> {
    policy.targets.iter().filter_map(|target| {
        let TargetKind::Cpus { cpus, .. } = &target.kind else { return None };
        (cpus.len() > SPREAD_PLACES).then(|| {
            Diagnostic::warning(format!(
                "the target `{}` has {} CPUs, but flows are spread over {SPREAD_PLACES} at most",
                target.name,
                cpus.len()
            ))
            .at(target.span.clone())
            .label("some of its CPUs get nothing")
            .help("name fewer CPUs")
        })
    })
}
