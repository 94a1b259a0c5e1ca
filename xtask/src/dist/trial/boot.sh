#!/bin/sh
# What the booted Debian runs, after all else: the life of the service. It ends the container, with 0
# if all was as it should be.

# Ends with what went wrong.
wrong() {
    echo "boot: $*"
    journalctl --no-pager --quiet --unit portsteer.service
    systemctl exit 1
    exit 1
}

# Waits for what takes a moment.
eventually() {
    for _ in $(seq 100); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    wrong "in vain: $*"
}

main_process() {
    systemctl show --property MainPID --value portsteer.service
}

counts() {
    portsteer stats | grep --quiet "^$1 "
}

# A container has no place for pins, which a machine's service manager makes.
mount -o remount,rw /sys && mkdir /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf || wrong "no pins"

dpkg --install "/portsteer-$OLD.deb" || wrong "the package cannot be installed"
systemctl is-active --quiet portsteer.service && wrong "it was started, unasked"
systemctl is-enabled --quiet portsteer.service && wrong "it would be started at boot, unasked"

sed s/eth0/host0/ /usr/share/doc/portsteer/examples/count-only/policy.toml >/etc/portsteer/policy.toml
systemctl enable --now portsteer.service || wrong "it does not start"
portsteer status || wrong "it is ready, and nothing is attached"
counts ssh || wrong "the policy is not in force"

sed -i 's/name = "ssh"/name = "renamed"/' /etc/portsteer/policy.toml
systemctl reload portsteer.service || wrong "it cannot be reloaded"
eventually counts renamed

before=$(main_process)
systemctl restart portsteer.service || wrong "it cannot be restarted"
[ "$(main_process)" != "$before" ] || wrong "it was not restarted"
counts renamed || wrong "a restart took the policy off"

systemctl stop portsteer.service || wrong "it does not stop"
portsteer status || wrong "a stop took the policy off"
systemctl start portsteer.service || wrong "it does not start again"

before=$(main_process)
dpkg --install "/portsteer-$NEW.deb" || wrong "the package cannot be upgraded"
systemctl is-active --quiet portsteer.service || wrong "an upgrade has stopped it"
[ "$(main_process)" != "$before" ] || wrong "an upgrade has not restarted it"
counts renamed || wrong "an upgrade took the policy off"

dpkg --remove portsteer || wrong "the package cannot be removed"
systemctl is-active --quiet portsteer.service && wrong "it runs on without its package"
[ -z "$(ls /sys/fs/bpf/portsteer 2>/dev/null)" ] || wrong "the removal left something attached"

dpkg --purge portsteer || wrong "the package cannot be purged"
[ -e /var/lib/portsteer ] && wrong "its state is left"
[ -z "$(find /etc/systemd -name 'portsteer*')" ] || wrong "it would still be started at boot"
[ -e /etc/portsteer/policy.toml ] || wrong "the policy is gone"
systemctl exit 0
