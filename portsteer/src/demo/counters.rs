//! What the kernel counted: portsteer's counters beside the network devices' own.

use std::{io, thread, time::Duration};

use serde::Serialize;

use super::{
    DemoError, Interrupt,
    agent::{Agent, InterfaceCount, Stats, TargetCount},
    network::{Network, UPLINK},
    rows::ROWS,
};

/// The counters, taken while nothing moves.
#[derive(Debug)]
pub(super) struct Snapshot {
    stats: Stats,
    received: Received,
}

/// Packets that network devices counted as received.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Received {
    uplink: u64,
    /// By `eth0` of each place.
    places: Vec<(&'static str, u64)>,
}

/// What became of the packets to one target.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Steered {
    pub(super) name: String,
    /// In words.
    pub(super) to: String,
    /// That were sent on their way.
    pub(super) packets: u64,
    pub(super) lost: u64,
    /// That the device at the target's end received, where there is one.
    pub(super) arrived: Option<u64>,
}

/// How often counters are read until they rest, and how long to wait between two attempts.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

impl Received {
    fn read(network: &Network) -> io::Result<Self> {
        let places = network
            .places
            .iter()
            .map(|place| Ok((place.name, place.eth0.link()?.counters.rx_packets)));
        Ok(Self {
            uplink: network.uplink.link()?.counters.rx_packets,
            places: places.collect::<io::Result<_>>()?,
        })
    }

    /// By the `eth0` of this place, if it is one.
    fn at(&self, place: &str) -> Option<u64> {
        self.places.iter().find(|(name, _)| *name == place).map(|&(_, packets)| packets)
    }
}

impl Snapshot {
    /// Reads the counters until those of the devices are the same before and after: then
    /// portsteer's belong to them. (IPv6 has an announcement to make now and then.)
    pub(super) fn take(
        network: &Network,
        agent: &Agent,
        interrupt: &Interrupt,
    ) -> Result<Self, DemoError> {
        Self::take_when(network, agent, interrupt, |_| true)
    }

    /// The same later on, when also everything that was steered since `before` has arrived, for
    /// which there is a second.
    pub(super) fn take_after(
        before: &Self,
        network: &Network,
        agent: &Agent,
        interrupt: &Interrupt,
    ) -> Result<Self, DemoError> {
        Self::take_when(network, agent, interrupt, |now| {
            now.steered_since(before)
                .iter()
                .all(|target| target.arrived.is_none_or(|arrived| arrived >= target.packets))
        })
    }

    fn take_when(
        network: &Network,
        agent: &Agent,
        interrupt: &Interrupt,
        is_complete: impl Fn(&Self) -> bool,
    ) -> Result<Self, DemoError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            interrupt.check()?;
            let received = Received::read(network)?;
            let stats = agent.stats()?;
            if Received::read(network)? == received {
                let snapshot = Self { stats, received };
                if is_complete(&snapshot) {
                    return Ok(snapshot);
                }
                last = Some(snapshot);
            }
            thread::sleep(PAUSE);
        }
        last.ok_or_else(|| DemoError::Broken(format!("the traffic on {UPLINK} never rests")))
    }

    pub(super) fn uplink(&self) -> InterfaceCount {
        self.stats.interface(UPLINK)
    }

    /// The targets, in the policy's order.
    pub(super) fn steered_since(&self, before: &Self) -> Vec<Steered> {
        self.stats
            .targets
            .iter()
            .map(|target| {
                let name = &target.name;
                let TargetCount { packets, lost, .. } = before.stats.target(name);
                let arrived = self.received.at(name).zip(before.received.at(name));
                Steered {
                    name: name.clone(),
                    to: target.to.clone(),
                    packets: target.packets.saturating_sub(packets),
                    lost: target.lost.total().saturating_sub(lost.total()),
                    arrived: arrived.map(|(now, before)| now.saturating_sub(before)),
                }
            })
            .collect()
    }

    /// What does not add up, given how many packets the rules that drop had in the rows.
    pub(super) fn deviations_since(&self, before: &Self, dropped_by_rules: u64) -> Vec<String> {
        let mut deviations = Vec::new();
        let mut equal = |what: &str, left: u64, right: u64| {
            if left != right {
                deviations.push(format!("{what}: {left} and {right}"));
            }
        };
        let InterfaceCount { packets, passed, steered, dropped, aborted, .. } = self.uplink();
        let before_uplink = before.uplink();
        let grew_by = packets.saturating_sub(before_uplink.packets);
        equal(
            "the packets that portsteer and the network device counted on uplink differ",
            grew_by,
            self.received.uplink.saturating_sub(before.received.uplink),
        );
        equal("the packets of all reasons and of uplink differ", self.stats.all_reasons(), packets);
        equal(
            "the packets passed, steered, dropped and aborted and those of uplink differ",
            passed + steered + dropped + aborted,
            packets,
        );
        equal(
            "the packets that the rules dropped and those that uplink lost differ",
            dropped_by_rules,
            dropped.saturating_sub(before_uplink.dropped),
        );
        equal(
            "the packets of all targets and those that uplink steered differ",
            self.stats.targets.iter().map(|target| target.packets).sum(),
            steered,
        );
        for TargetCount { name, packets, .. } in &self.stats.targets {
            let rules = ROWS
                .iter()
                .filter(|row| row.group.target() == Some(name))
                .filter_map(|row| row.rule);
            equal(
                &format!("the packets of target {name} and of its rules differ"),
                *packets,
                rules.map(|rule| self.stats.rule(rule)).sum(),
            );
        }
        for Steered { name, packets, lost, arrived, .. } in self.steered_since(before) {
            if lost != 0 {
                deviations.push(format!("{lost} packets to target {name} were lost"));
            }
            if let Some(arrived) = arrived.filter(|&arrived| arrived < packets) {
                deviations.push(format!(
                    "{packets} packets were steered to target {name}, and {arrived} arrived"
                ));
            }
        }
        if grew_by == 0 {
            deviations.push("no packet was counted on uplink".to_owned());
        }
        if aborted != 0 {
            deviations.push(format!("the program aborted on {aborted} packets"));
        }
        deviations
    }
}
