//! Kernels that are too old: the agent refuses them and says what they lack. `cargo xtask vm` runs this
//! on one; everywhere else there is nothing to see.

use portsteer::dataplane::kernel;
use portsteer_testkit::{
    agent::{run, run_agent},
    sandbox::{sandbox, skip},
    site::Site,
};

#[test]
fn a_kernel_that_is_too_old_is_refused_with_what_it_lacks() {
    let Some(release) = too_old() else {
        return skip(format!("this kernel is {} or later", kernel::OLDEST));
    };
    sandbox(|| {
        let site = Site::new();
        let policy = "version = 1\ninterfaces = [\"uplink\"]\n";
        let lacks = "it lacks XDP programs for frames in several buffers (Linux 5.18)";
        let too_old = format!("the kernel is {release}");
        run_agent(&site.host, "main", policy).expect(3, &[&too_old, "6.1 or later", lacks]);
        assert_eq!(site.xdp(), None, "nothing is attached");
        run(&site.host, &["status"]).expect(3, &[&too_old]);
        // What a policy says does not depend on the kernel.
        site.udp_echo(portsteer_testkit::site::HOST_V4, 2000, 1);
    });
}

/// This kernel's release, if it is below the floor.
fn too_old() -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let numbers = |text: &str| -> Vec<u32> {
        text.split(|c: char| !c.is_ascii_digit())
            .map_while(|part| part.parse().ok())
            .take(2)
            .collect()
    };
    (numbers(&release) < numbers(kernel::OLDEST)).then(|| release.trim().to_owned())
}
