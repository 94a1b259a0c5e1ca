//! All interleavings of what changes the word `active`: the kernel's timers, and an agent that applies, confirms, rolls
//! back, loads programs, is killed at any step and started again. They are explored breadth-first with the very
//! transitions that both sides use; the steps around them are those of `dataplane/applying.rs`, `dataplane/trials.rs` and
//! `agent/control/`.

use std::collections::{HashSet, VecDeque};

use portsteer_common::{Active, active::Phase};

/// A policy by the number that it gets.
type Policy = u64;

/// How often each thing happens at most.
const APPLIES: u8 = 3;
const KILLS: u8 = 3;

/// What is to be explored: the design, or what it replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Design {
    CompareAndSwap,
    /// A loader that writes back what it has read, as aya's does.
    LoaderWritesBack,
    /// A timer that writes the word before whatever is there.
    TimerWrites,
    /// A start that reads what is in force before it reads whether that is on trial.
    StartReadsTwice,
}

/// What the agent is in the middle of, with what it has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Agent {
    Dead,
    Idle,
    /// The policy's bank is to be written.
    Staged {
        policy: Policy,
        trial: bool,
        word: Active,
    },
    /// Programs are to be loaded.
    Filled {
        policy: Policy,
        trial: bool,
        word: Active,
    },
    /// Programs are being loaded.
    Loading {
        policy: Policy,
        trial: bool,
        word: Active,
        read: Active,
    },
    /// The word is to be changed.
    Loaded {
        policy: Policy,
        trial: bool,
        word: Active,
    },
    /// It is in force; that is to be written down.
    Flipped {
        policy: Policy,
    },
    /// A trial is to be confirmed.
    Confirming {
        word: Active,
    },
    Confirmed,
    /// A trial is to be ended.
    Ending {
        word: Active,
    },
    /// It has ended: what only the other policy needed is let go, and the word is settled.
    Ended,
    /// It was settled; what was staged is to be forgotten.
    Settled,
    /// Programs are loaded for an interface that has come.
    Following {
        read: Active,
    },
    /// A start has read which policy is in force.
    Started {
        word: Active,
        policy: Option<Policy>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    word: Active,
    banks: [Option<Policy>; 2],
    /// Deadlines that have not passed: the word that each ends.
    timers: Vec<Active>,
    accepted: Option<Policy>,
    pending: Option<Policy>,
    agent: Agent,
    applies: u8,
    kills: u8,
    /// Trials that were confirmed before their time was up, and policies that were put in force for good.
    kept: Vec<Policy>,
    /// Trials whose time was up, or that were rolled back, before they were confirmed.
    over: Vec<Policy>,
}

impl World {
    fn new() -> Self {
        Self {
            word: Active::NOTHING.put_in_force(1).unwrap(),
            banks: [None, Some(1)],
            timers: Vec::new(),
            accepted: Some(1),
            pending: None,
            agent: Agent::Idle,
            applies: 0,
            kills: 0,
            kept: vec![1],
            over: Vec::new(),
        }
    }

    fn in_force(&self) -> Option<Policy> {
        self.banks[self.word.bank()]
    }

    fn swap(&mut self, from: Active, to: Active) -> bool {
        let is_swapped = self.word == from;
        if is_swapped {
            self.word = to;
        }
        is_swapped
    }

    /// What must hold whatever has happened.
    fn check(&self) -> Result<(), String> {
        let in_force = self.in_force();
        if let Some(accepted) = self.accepted
            && !self.kept.contains(&accepted)
        {
            return Err(format!("policy {accepted} was accepted and never confirmed"));
        }
        if let Some(policy) = in_force
            && self.over.contains(&policy)
        {
            return Err(format!("policy {policy} is in force although its trial is over"));
        }
        if self.word.phase() == Phase::Running && !self.timers.contains(&self.word) {
            return Err(format!("policy {in_force:?} is on trial without a deadline"));
        }
        if in_force.is_none() && self.word != Active::NOTHING {
            return Err("an empty bank is in force".to_owned());
        }
        if let Some(last) = self.kept.last()
            && self.word.phase() == Phase::None
            && in_force.is_some_and(|policy| policy < *last)
        {
            return Err(format!("policy {last} was kept, and {in_force:?} is in force"));
        }
        Ok(())
    }

    /// All worlds that may be next.
    fn next(&self, design: Design) -> Vec<Self> {
        let mut next = Vec::new();
        for index in 0..self.timers.len() {
            let mut world = self.clone();
            let running = world.timers.remove(index);
            let lapsed = running.lapse().expect("a timer is set for a trial");
            let policy = world.banks[running.bank()];
            if design == Design::TimerWrites {
                world.word = lapsed;
            } else if world.swap(running, lapsed) {
                world.over.extend(policy);
            }
            next.push(world);
        }
        if self.agent != Agent::Dead && self.kills < KILLS {
            let agent = Agent::Dead;
            next.push(Self { agent, kills: self.kills + 1, ..self.clone() });
        }
        next.extend(self.steps(design));
        next
    }

    /// What the agent may do next.
    fn steps(&self, design: Design) -> Vec<Self> {
        let to = |agent| Self { agent, ..self.clone() };
        match self.agent {
            Agent::Dead => {
                // The word, the manifest, and the word once more.
                let word = self.word;
                vec![to(Agent::Started { word, policy: self.in_force() })]
            }
            Agent::Started { word, policy } => {
                let phase = match design {
                    Design::StartReadsTwice => self.word.phase(),
                    _ if self.word != word => return vec![to(Agent::Dead)],
                    _ => word.phase(),
                };
                let mut world = to(Agent::Idle);
                match phase {
                    Phase::Running => {}
                    Phase::Lapsed => {
                        // What is in force is kept anew, unless it is the accepted one.
                        world.accepted = policy.or(self.accepted);
                        world.agent = Agent::Ended;
                    }
                    Phase::None if policy == self.accepted => world.pending = None,
                    Phase::None if policy == self.pending => {
                        world.accepted = world.pending.take();
                    }
                    // What was kept on disk is older: it is kept anew.
                    Phase::None => {
                        (world.accepted, world.pending) = (policy.or(self.accepted), None);
                    }
                }
                vec![world]
            }
            Agent::Idle => self.choices(),
            Agent::Staged { policy, trial, word } => {
                let mut world = to(Agent::Filled { policy, trial, word });
                world.banks[word.other_bank()] = Some(policy);
                vec![world]
            }
            Agent::Filled { policy, trial, word } => {
                vec![to(Agent::Loading { policy, trial, word, read: self.word })]
            }
            Agent::Loading { policy, trial, word, read } => {
                let mut world = to(Agent::Loaded { policy, trial, word });
                if design == Design::LoaderWritesBack {
                    world.word = read;
                }
                vec![world]
            }
            Agent::Loaded { policy, trial, word } => vec![self.flip(policy, trial, word)],
            Agent::Flipped { policy } => {
                let mut world = to(Agent::Idle);
                if world.pending == Some(policy) {
                    world.accepted = world.pending.take();
                }
                vec![world]
            }
            Agent::Confirming { word } => {
                let mut world = to(Agent::Ended);
                if let Some(confirmed) = word.confirm()
                    && world.swap(word, confirmed)
                {
                    world.kept.extend(world.banks[word.bank()]);
                    world.agent = Agent::Confirmed;
                }
                vec![world]
            }
            Agent::Confirmed => {
                let mut world = to(Agent::Idle);
                if let Some(pending) = world.pending.take() {
                    world.accepted = Some(pending);
                }
                vec![world]
            }
            Agent::Ending { word } => {
                let mut world = to(Agent::Ended);
                if let Some(lapsed) = word.lapse()
                    && world.swap(word, lapsed)
                {
                    world.over.extend(world.banks[word.bank()]);
                }
                vec![world]
            }
            Agent::Ended => {
                let mut world = to(Agent::Settled);
                let generation = self.in_force().unwrap_or(0);
                if let Some(settled) = self.word.settle(generation) {
                    world.swap(self.word, settled);
                }
                vec![world]
            }
            Agent::Settled => vec![Self { pending: None, ..to(Agent::Idle) }],
            Agent::Following { read } => {
                let mut world = to(Agent::Idle);
                if design == Design::LoaderWritesBack {
                    world.word = read;
                }
                vec![world]
            }
        }
    }

    /// The last step of an apply.
    fn flip(&self, policy: Policy, trial: bool, word: Active) -> Self {
        let mut world = self.clone();
        let next = if trial { word.begin_trial(policy) } else { word.put_in_force(policy) };
        let Some(next) = next.filter(|_| self.word == word) else {
            // Refused: nothing is changed.
            world.banks[word.other_bank()] = None;
            (world.pending, world.agent) = (None, Agent::Idle);
            return world;
        };
        world.word = next;
        if trial {
            world.timers.push(next);
            world.agent = Agent::Idle;
        } else {
            world.kept.push(policy);
            world.agent = Agent::Flipped { policy };
        }
        world
    }

    /// What an operator may ask for.
    fn choices(&self) -> Vec<Self> {
        let word = self.word;
        let to = |agent| Self { agent, ..self.clone() };
        let mut choices = vec![to(Agent::Following { read: word })];
        match word.phase() {
            Phase::Running => {
                choices.push(to(Agent::Confirming { word }));
                choices.push(to(Agent::Ending { word }));
            }
            Phase::Lapsed => choices.push(to(Agent::Ended)),
            Phase::None if self.applies < APPLIES => {
                for trial in [false, true] {
                    let policy = 2 + Policy::from(self.applies);
                    let mut world = to(Agent::Staged { policy, trial, word });
                    (world.applies, world.pending) = (self.applies + 1, Some(policy));
                    choices.push(world);
                }
            }
            Phase::None => {}
        }
        choices
    }
}

/// Goes through all worlds that there may be. How many those are, and what is wrong with the first bad one.
fn explore(design: Design) -> (usize, Option<String>) {
    let mut seen = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    while let Some(world) = queue.pop_front() {
        if let Err(why) = world.check() {
            return (seen.len(), Some(format!("{why}: {world:?}")));
        }
        for next in world.next(design) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    (seen.len(), None)
}

#[test]
fn whatever_comes_first_a_trial_is_confirmed_or_over() {
    let (count, bad) = explore(Design::CompareAndSwap);
    assert_eq!(bad, None);
    assert!(count > 5_000, "only {count} worlds");
}

/// The exploration finds what was wrong before.
#[test]
fn every_other_design_is_found_out() {
    for design in [Design::LoaderWritesBack, Design::TimerWrites, Design::StartReadsTwice] {
        let (_, bad) = explore(design);
        assert!(bad.is_some(), "{design:?}");
    }
}
