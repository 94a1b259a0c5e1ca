//! Interfaces that go down and up, and vanish and come back.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use portsteer::lab::Device;

use portsteer_testkit::random::Random;

use crate::{deeds::Deeds, second::Second, sink::Sink, traffic::Sender};

pub fn flap_until(
    over: &AtomicBool,
    second: &mut Second,
    sender: &Mutex<Option<Sender>>,
    sink: &Sink,
    deeds: &Deeds,
    random: &mut Random,
) {
    while !over.load(Ordering::Relaxed) {
        thread::sleep(random.milliseconds(250));
        match random.below(4) {
            0 => {
                deeds.add("the second interface", "times set down and up");
                flap(second.device().expect("the second interface"), random);
            }
            1 => {
                deeds.add("the second interface", "times removed and made anew");
                second.delete(sender);
                thread::sleep(random.milliseconds(100));
                second.create(sender);
            }
            _ => {
                deeds.add("the target's interface", "times set down and up");
                flap(&sink.street.left, random);
            }
        }
    }
}

fn flap(device: &Device, random: &mut Random) {
    device.set_down().expect("it can be set down");
    thread::sleep(random.milliseconds(100));
    device.set_up().expect("it can be set up");
}
