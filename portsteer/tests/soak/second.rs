//! The second cable, which comes and goes, with what its devices had counted when they went.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use portsteer::lab::{Device, End, Namespace, Veth, ethtool::Offload};

use crate::traffic::Sender;

/// What the kernel has counted at both ends of a cable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AtEnds {
    /// At the host's end, out of the queue.
    pub received: u64,
    /// At the client's end, since the host's queue was full, or the host's end was down.
    pub not_taken: u64,
}

impl AtEnds {
    pub fn of(cable: &Veth) -> Self {
        let sender = cable.left.link().expect("the client's end").counters;
        let host = cable.right.link().expect("the host's end").counters;
        Self { received: host.rx_packets, not_taken: sender.tx_dropped }
    }

    fn add(&mut self, more: Self) {
        self.received += more.received;
        self.not_taken += more.not_taken;
    }
}

/// A cable whose host's end is `second`, if it is there.
#[derive(Debug)]
pub struct Second {
    client: Namespace,
    host: Namespace,
    cable: Option<Veth>,
    /// By those that are gone.
    before: AtEnds,
}

impl Second {
    /// Makes it, and lets `sender` send.
    pub fn new(client: &Namespace, host: &Namespace, sender: &Mutex<Option<Sender>>) -> Self {
        let (client, host) = (client.clone(), host.clone());
        let mut second = Self { client, host, cable: None, before: AtEnds::default() };
        second.create(sender);
        second
    }

    /// The host's end, if it is there.
    pub fn device(&self) -> Option<&Device> {
        self.cable.as_ref().map(|cable| &cable.right)
    }

    pub fn create(&mut self, sender: &Mutex<Option<Sender>>) {
        let (client, host) = (End::new(&self.client, "client2"), End::new(&self.host, "second"));
        let cable = Veth::between(client, host).create().expect("a veth pair");
        // It takes the client's frames also before anything is attached.
        cable.right.set_offload(Offload::Gro, true).expect("the offload can be switched");
        let new = self.client.run(|| Sender::on(&cable.left));
        *sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(new);
        self.cable = Some(cable);
    }

    /// Sets the host's end down, so that nothing moves any more, and then removes both.
    pub fn delete(&mut self, sender: &Mutex<Option<Sender>>) {
        let Some(cable) = self.cable.take() else { return };
        cable.right.set_down().expect("it can be set down");
        *sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // What was handed to a CPU still names the device.
        thread::sleep(Duration::from_millis(20));
        self.before.add(AtEnds::of(&cable));
        cable.left.delete().expect("it can be removed");
    }

    /// What was counted at this cable's ends, in all its lives.
    pub fn counted(&self) -> AtEnds {
        let mut all = self.before;
        if let Some(cable) = &self.cable {
            all.add(AtEnds::of(cable));
        }
        all
    }
}
