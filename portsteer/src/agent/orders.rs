//! The orders that wait for the agent's loop. Each has a place for as long as its client waits for the answer: with
//! the client go the place and what the order takes of memory.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{conditions::Condition, server::Job};

/// How many orders may wait.
const MOST: usize = 16;

/// Something that is to be changed.
#[derive(Debug)]
pub struct Order {
    /// Looked at in the loop, right before the change. No two orders are ever made into one.
    pub condition: Condition,
    pub job: Job,
}

/// Where orders are put.
#[derive(Debug, Clone)]
pub struct Desk(Arc<Shared>);

/// Where orders come from, in the order in which they were put there.
#[derive(Debug)]
pub struct Orders(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// With their numbers.
    orders: VecDeque<(u64, Order)>,
    next: u64,
    is_closed: bool,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A desk, and where its orders come out.
pub fn desk() -> (Desk, Orders) {
    let shared = Arc::new(Shared::default());
    (Desk(Arc::clone(&shared)), Orders(shared))
}

/// Why an order is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    TooMany,
    Ending,
}

impl Desk {
    /// Puts an order behind the others, for as long as the place is kept.
    pub fn put(&self, order: Order) -> Result<Place, NotTaken> {
        let mut waiting = self.0.waiting();
        if waiting.is_closed {
            return Err(NotTaken::Ending);
        }
        if waiting.orders.len() >= MOST {
            return Err(NotTaken::TooMany);
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.orders.push_back((number, order));
        drop(waiting);
        self.0.came.notify_one();
        Ok(Place { number, shared: Arc::clone(&self.0) })
    }
}

/// An order's place among those that wait. Without it, an order that was not begun never is.
#[derive(Debug)]
pub struct Place {
    number: u64,
    shared: Arc<Shared>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        let index = waiting.orders.iter().position(|(number, _)| *number == self.number);
        let order = index.and_then(|index| waiting.orders.remove(index));
        // Outside of the lock, as freeing a long order takes a while.
        drop(waiting);
        drop(order);
    }
}

impl Orders {
    /// Waits for the next one.
    pub async fn next(&mut self) -> Order {
        loop {
            let first = self.0.waiting().orders.pop_front();
            match first {
                Some((_, order)) => return order,
                None => self.0.came.notified().await,
            }
        }
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.is_closed = true;
        let orders = std::mem::take(&mut waiting.orders);
        drop(waiting);
        // Their clients learn that the agent is ending.
        drop(orders);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        agent::server::{Denied, Outcome, Reply},
        api::{DoneAnswer, Refusal},
    };

    fn order() -> (Order, oneshot::Receiver<Outcome<DoneAnswer>>) {
        let (reply, answer): (Reply<DoneAnswer>, _) = oneshot::channel();
        (Order { condition: Condition::default(), job: Job::Confirm(reply) }, answer)
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test);
    }

    #[test]
    fn a_vanished_client_has_no_place() {
        run(async {
            let (desk, mut orders) = desk();
            let mut places = Vec::new();
            for _ in 0..MOST {
                places.push(desk.put(order().0).expect("a place"));
            }
            assert_eq!(desk.put(order().0).err(), Some(NotTaken::TooMany));
            // Its place is another's, at the end.
            places.remove(0);
            let (last, mut answer) = order();
            places.push(desk.put(last).expect("a place"));
            assert_eq!(desk.put(order().0).err(), Some(NotTaken::TooMany));
            for left in (0..MOST).rev() {
                let Order { job: Job::Confirm(reply), .. } = orders.next().await else {
                    panic!("another job")
                };
                // The clients of the others hold their places and take no answers.
                let result = Err(Denied::Refused(Refusal::negative("no")));
                let _ = reply.send(Outcome { result, tag: None });
                assert_eq!(answer.try_recv().is_ok(), left == 0, "{left}");
            }
        });
    }

    #[test]
    fn no_client_waits_for_an_agent_that_has_ended() {
        run(async {
            let (desk, orders) = desk();
            let (order, answer) = order();
            let _place = desk.put(order).expect("a place");
            drop(orders);
            assert!(answer.await.is_err(), "it was never begun");
            let (order, _answer) = self::order();
            assert_eq!(desk.put(order).err(), Some(NotTaken::Ending));
        });
    }
}
