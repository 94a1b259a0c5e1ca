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

# Whom a file belongs to, by user and group, and its mode.
owner() {
    stat --format=%U:%G:%a "$1"
}

is_in_journal() {
    journalctl --quiet --unit portsteer.service | grep --quiet --fixed-strings "$1"
}

# A container has no place for pins, which a machine's service manager makes, for root alone.
mount -o remount,rw /sys && mkdir /sys/fs/bpf && mount -t bpf -o mode=0700 bpf /sys/fs/bpf || wrong "no pins"

dpkg --install "/portsteer-$OLD.deb" || wrong "the package cannot be installed"
# Tenths: below 2.0.
systemd-analyze security --threshold=19 portsteer.service >/dev/null ||
    wrong "the service is more exposed than it was: $(systemd-analyze security portsteer.service | tail -1)"
systemctl is-active --quiet portsteer.service && wrong "it was started, unasked"
systemctl is-enabled --quiet portsteer.service && wrong "it would be started at boot, unasked"
[ "$(owner /sys/fs/bpf/portsteer)" = portsteer:portsteer:700 ] || wrong "the pins' directory is anybody's"

# What a version left behind whose agent was root: its pins, its state, and files that only root can read.
rmdir /sys/fs/bpf/portsteer
mkdir /etc/systemd/system/portsteer.service.d
cat >/etc/systemd/system/portsteer.service.d/root.conf <<END
[Service]
User=root
Group=root
AmbientCapabilities=
TemporaryFileSystem=
BindPaths=
ReadWritePaths=/sys/fs/bpf
END
systemctl mask --runtime --quiet portsteer-pins.service
groupadd netadmin
cat >>/etc/portsteer/agent.toml <<END
socket_group = "netadmin"
END
sed s/eth0/host0/ /usr/share/doc/portsteer/examples/count-only/policy.toml >/etc/portsteer/policy.toml
chmod 0600 /etc/portsteer/*
chgrp root /etc/portsteer/*
systemctl enable --now portsteer.service || wrong "it does not start as root"
portsteer status || wrong "it is ready, and nothing is attached"
counts ssh || wrong "the policy is not in force"
[ "$(owner /proc/"$(main_process)"/status)" = root:root:444 ] || wrong "root's agent is not root's"
[ "$(owner /sys/fs/bpf/portsteer/main)" = root:root:700 ] || wrong "root's pins are not root's"

# Of files elsewhere, the package knows nothing.
mkdir /srv/lists
echo 192.0.2.0/24 >/srv/lists/known.txt
chmod 0600 /srv/lists/known.txt
cat >>/etc/portsteer/policy.toml <<END

[sets.known]
file = "/srv/lists/known.txt"

[[rules]]
name = "known"
src = "@known"
action = "pass"
END
systemctl reload portsteer.service || wrong "root's agent cannot be reloaded"
eventually counts known

before=$(main_process)
rm -r /etc/systemd/system/portsteer.service.d
systemctl unmask --runtime --quiet portsteer-pins.service
dpkg --install "/portsteer-$NEW.deb" || wrong "the package cannot be upgraded"
systemctl is-active --quiet portsteer.service || wrong "an upgrade has stopped it"
[ "$(main_process)" != "$before" ] || wrong "an upgrade has not restarted it"
counts known || wrong "an upgrade took the policy off"
[ "$(owner /proc/"$(main_process)"/status)" = portsteer:portsteer:444 ] || wrong "the agent is still root's"
[ -z "$(find /sys/fs/bpf/portsteer ! -user portsteer)" ] || wrong "some pins are still root's"
[ -z "$(find /var/lib/portsteer ! -user portsteer)" ] || wrong "some of its state is still root's"
for file in agent.toml policy.toml; do
    [ "$(owner /etc/portsteer/$file)" = root:portsteer:640 ] || wrong "it cannot read $file"
done
[ "$(owner /run/portsteer/agent.sock)" = portsteer:netadmin:660 ] || wrong "the group lost its socket"
grep --quiet "^CapEff:.*000000c000001000$" "/proc/$(main_process)/status" || wrong "it has other capabilities"
grep --quiet "^Seccomp:.*2$" "/proc/$(main_process)/status" || wrong "no system call is refused"

# As the agent: the one setting of the kernel that it may change, and another one.
as_agent() {
    nsenter --target "$(main_process)" --mount -- setpriv --reuid portsteer --regid portsteer --clear-groups \
        --inh-caps +net_admin --ambient-caps +net_admin -- sh -c "$1"
}
settings=/proc/sys/net/ipv4
as_agent "cat $settings/tcp_syncookies >$settings/tcp_syncookies" || wrong "it cannot switch cookies on"
as_agent "cat $settings/ip_forward >$settings/ip_forward" 2>/dev/null && wrong "it can change any setting"
as_agent "touch /etc/portsteer/new" 2>/dev/null && wrong "it can write its configuration"
as_agent "touch /sys/fs/bpf/portsteer/../new" 2>/dev/null && wrong "it can make more than pins"

# The list is still root's own: what was accepted stays in force, also when the agent begins anew.
systemctl reload portsteer.service || wrong "it cannot be reloaded"
eventually is_in_journal "chgrp portsteer /srv/lists/known.txt && chmod g+r /srv/lists/known.txt"
counts known || wrong "a list that cannot be read took the policy off"
systemctl stop portsteer.service
portsteer detach --instance main || wrong "root cannot detach what is the agent's"
systemctl start portsteer.service || wrong "it does not start with a list that it cannot read"
counts known || wrong "what was accepted is not in force"
chgrp portsteer /srv/lists/known.txt && chmod g+r /srv/lists/known.txt
sed -i 's/name = "ssh"/name = "renamed"/' /etc/portsteer/policy.toml
systemctl reload portsteer.service || wrong "it cannot be reloaded"
eventually counts renamed
counts known || wrong "the list is not in force"

# Steering takes more rights than dropping: tracepoints, offloads, the kernel's types.
cat >>/etc/portsteer/policy.toml <<END

[targets.worker]
cpus = ["0"]

[[rules]]
name = "steered"
protocol = "tcp"
dst_port = 5001
action = { steer = "worker" }
END
systemctl reload portsteer.service || wrong "it cannot be reloaded"
eventually counts steered
[ -n "$(find /sys/fs/bpf/portsteer/main -name 'watch_*')" ] || wrong "no tracepoint is watched"

before=$(main_process)
systemctl restart portsteer.service || wrong "it cannot be restarted"
[ "$(main_process)" != "$before" ] || wrong "it was not restarted"
counts renamed || wrong "a restart took the policy off"

systemctl stop portsteer.service || wrong "it does not stop"
portsteer status || wrong "a stop took the policy off"
systemctl start portsteer.service || wrong "it does not start again"

before=$(main_process)
dpkg --install "/portsteer-$NEW.deb" || wrong "the package cannot be installed over itself"
systemctl is-active --quiet portsteer.service || wrong "an upgrade has stopped it"
[ "$(main_process)" != "$before" ] || wrong "an upgrade has not restarted it"
counts renamed || wrong "an upgrade took the policy off"

# A link among the pins leads to what is none of portsteer's.
mkdir /victim /victim/deep && touch /victim/deep/file
ln -s /victim /sys/fs/bpf/portsteer/victim || wrong "no link can be made"
dpkg --remove portsteer || wrong "the package cannot be removed"
systemctl is-active --quiet portsteer.service && wrong "it runs on without its package"
[ -e /victim/deep/file ] || wrong "the removal followed a link"
[ -z "$(find /sys/fs/bpf/portsteer ! -type d ! -type l 2>/dev/null)" ] || wrong "the removal left something attached"

dpkg --purge portsteer || wrong "the package cannot be purged"
[ -e /var/lib/portsteer ] && wrong "its state is left"
[ -z "$(find /etc/systemd -name 'portsteer*')" ] || wrong "it would still be started at boot"
[ -e /etc/portsteer/policy.toml ] || wrong "the policy is gone"
systemctl exit 0
