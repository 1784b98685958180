//! Replicas shared out over processes that send messages to each other, as MPI starts them.
//!
//! One process, the *root* (rank 0), has the run: its [`Ensemble`] shows all replicas
//! ([`Ensemble::across`]). Every other one holds an ensemble of its share and [serves](serve): it does what root says.
//! Replicas advance where they are. What travels is commands, energies, temperatures, and what somebody looks at; so the
//! run loop, replica exchange, files and checkpoints are those of one process, and so are all bits.

use crate::array::{Array, DType, View};
use crate::device::Fetch;
use crate::ensemble::{Divergence, Ensemble, Shown, chunk_sizes, lanes_of};
use crate::error::{Error, Result, invalid};
use crate::force::Want;
use crate::propagator::Acceptance;
use crate::state::{Cell, Clock, State};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Carries messages between root and every other process, in order. Only one thread of a process uses it at a time.
pub trait Messages: Send + Sync {
    /// Number of this process.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn ranks(&self) -> usize;

    /// Sends `message` to process `to`; may wait until it is received.
    ///
    /// # Errors
    /// Where the connection is lost.
    fn send(&self, to: usize, message: &[u8]) -> Result<()>;

    /// Waits for the next message of process `from`.
    ///
    /// # Errors
    /// Where the connection is lost.
    fn receive(&self, from: usize) -> Result<Vec<u8>>;
}

/// The replicas of each of `ranks` processes: whole vectors of them as far as there are enough.
///
/// # Errors
/// Where there are fewer replicas than processes.
pub fn shares(replicas: usize, ranks: usize, dtype: DType) -> Result<Vec<Range<usize>>> {
    if replicas < ranks {
        return invalid(format!("{ranks} processes cannot share out {replicas} replicas; start {replicas} of them at most"));
    }
    let mut end = 0;
    let share = |size| {
        end += size;
        end - size..end
    };
    Ok(chunk_sizes(replicas, lanes_of(dtype), ranks).into_iter().map(share).collect())
}

/// What root says.
#[derive(Serialize, Deserialize)]
enum Command {
    /// The first one: the initial state of the share, and what else root has to say.
    Begin(Head, String),
    Run(u64),
    Evaluate(Want),
    Fetch(Fetch),
    Restore(Head, Vec<bool>),
    /// Positions when all replicas were last seen in range.
    LastGood,
    Stop,
}

/// A command, after new temperatures.
#[derive(Serialize, Deserialize)]
struct Order {
    /// Replica in the share and its new kT, in the order in which they were set.
    kt: Vec<(usize, f64)>,
    command: Command,
}

/// A state without its phase, which follows the head of a message as raw numbers.
#[derive(Serialize, Deserialize)]
struct Head {
    single: bool,
    cells: Option<Vec<Cell>>,
    kt: Vec<f64>,
    step: u64,
    clock: Clock,
}

/// What a process answers.
#[derive(Default, Serialize, Deserialize)]
struct Answer {
    failure: Option<Failure>,
    frozen: Vec<bool>,
    divergences: Vec<Divergence>,
    acceptance: Option<Acceptance>,
}

#[derive(Serialize, Deserialize)]
enum Failure {
    Diverged { replica: u32, step: u64, what: String },
    Other(String),
}

/// Length of the head, head, body.
fn pack(head: &impl Serialize, body: &[u8]) -> Result<Vec<u8>> {
    let head = serde_json::to_vec(head).map_err(broken)?;
    Ok([&(head.len() as u64).to_le_bytes(), &head[..], body].concat())
}

fn unpack<T: for<'a> Deserialize<'a>>(message: &[u8]) -> Result<(T, &[u8])> {
    let (length, rest) = message.split_first_chunk().ok_or_else(|| broken("it is cut off"))?;
    let length = u64::from_le_bytes(*length) as usize;
    let (head, body) = rest.split_at_checked(length).ok_or_else(|| broken("it is cut off"))?;
    Ok((serde_json::from_slice(head).map_err(broken)?, body))
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("a message between processes makes no sense: {what}; do all of them run the same program?"))
}

fn put(view: View<'_>, body: &mut Vec<u8>) {
    match view {
        View::F32(v) => body.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        View::F64(v) => body.extend(v.iter().flat_map(|x| x.to_le_bytes())),
    }
}

/// Fills `to[range]` from the front of `body`.
fn take(to: &mut Array, range: Range<usize>, body: &mut &[u8]) -> Result<()> {
    let size = if to.dtype() == DType::F32 { 4 } else { 8 };
    let (bytes, rest) = body.split_at_checked(size * range.len()).ok_or_else(|| broken("numbers are missing"))?;
    match to {
        Array::F32(v) => v[range].iter_mut().zip(bytes.as_chunks().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b)),
        Array::F64(v) => v[range].iter_mut().zip(bytes.as_chunks().0).for_each(|(x, b)| *x = f64::from_le_bytes(*b)),
    }
    *body = rest;
    Ok(())
}

impl Head {
    fn of(state: &State) -> (Head, Vec<u8>) {
        let mut body = Vec::new();
        put(state.phase.view(), &mut body);
        let single = state.dtype() == DType::F32;
        (Head { single, cells: state.cells.clone(), kt: state.kt.clone(), step: state.step, clock: state.clock }, body)
    }

    fn state(self, mut body: &[u8]) -> Result<State> {
        let (dtype, size) = if self.single { (DType::F32, 4) } else { (DType::F64, 8) };
        let mut phase = Array::zeros(dtype, body.len() / size);
        let all = 0..phase.len();
        take(&mut phase, all, &mut body)?;
        Ok(State { phase, cells: self.cells, kt: self.kt, step: self.step, clock: self.clock })
    }
}

/// Root's side: who is asked, and what is to be said to each.
pub(crate) struct Far {
    messages: Arc<dyn Messages>,
    /// What is known of the replicas of each other process, rank 1 first.
    pub(crate) shown: Vec<Shown>,
    /// Temperatures that each does not know yet.
    pub(crate) kt: Vec<Vec<(usize, f64)>>,
    acceptance: Vec<Option<Acceptance>>,
    divergences: Vec<Divergence>,
}

impl Far {
    /// Gives every other process its replicas, as `shown` has them, and its `task`.
    pub(crate) fn begin(messages: Arc<dyn Messages>, shown: Vec<Shown>, task: &str) -> Result<Far> {
        let n = shown.len();
        let mut far = Far { messages, shown, kt: vec![Vec::new(); n], acceptance: vec![None; n], divergences: Vec::new() };
        let sent = far.tell_each(|shown| {
            let (head, body) = Head::of(&shown.state);
            (Command::Begin(head, task.to_owned()), body)
        });
        sent.and(far.hear(|_, _| Ok(())))?;
        far.ask_for(Fetch::ALL)?;
        Ok(far)
    }

    fn tell_each(&mut self, command: impl Fn(&Shown) -> (Command, Vec<u8>)) -> Result<()> {
        for (i, (shown, kt)) in self.shown.iter().zip(&mut self.kt).enumerate() {
            let (command, body) = command(shown);
            self.messages.send(i + 1, &pack(&Order { kt: std::mem::take(kt), command }, &body)?)?;
        }
        Ok(())
    }

    /// Says that replicas are to advance; [`Far::ran`] waits until they did.
    pub(crate) fn run(&mut self, steps: u64) -> Result<()> {
        self.tell_each(|_| (Command::Run(steps), Vec::new()))
    }

    /// Says that forces, and energies where wanted, are to be computed; [`Far::evaluated`] waits until they are.
    pub(crate) fn evaluate(&mut self, want: Want) -> Result<()> {
        self.tell_each(|_| (Command::Evaluate(want), Vec::new()))
    }

    /// Waits for an answer of every process and hands what follows its head to `body`. Of several failures, that of the first
    /// process is returned.
    fn hear(&mut self, mut body: impl FnMut(&mut Shown, &[u8]) -> Result<()>) -> Result<()> {
        let mut failure = None;
        for i in 0..self.shown.len() {
            let message = self.messages.receive(i + 1)?;
            let (answer, rest): (Answer, _) = unpack(&message)?;
            self.acceptance[i] = answer.acceptance;
            self.divergences.extend(answer.divergences);
            // A process that could not begin has no replicas to speak of.
            if answer.frozen.len() == self.shown[i].frozen.len() {
                self.shown[i].frozen = answer.frozen;
            } else if answer.failure.is_none() {
                failure.get_or_insert(broken("it is about other replicas"));
            }
            match answer.failure {
                None => {
                    // The other answers have to be read all the same.
                    failure = body(&mut self.shown[i], rest).err().or(failure);
                }
                Some(Failure::Diverged { replica, step, what }) => {
                    self.fetch_good(i)?;
                    failure.get_or_insert(Error::Diverged { replica, step, what });
                }
                Some(Failure::Other(what)) => {
                    failure.get_or_insert(Error::Invalid(format!("process {}: {what}", i + 1)));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    pub(crate) fn ran(&mut self, step: u64, clock: Clock) -> Result<()> {
        self.hear(|shown, _| {
            (shown.state.step, shown.state.clock, shown.fresh) = (step, clock, Fetch::default());
            Ok(())
        })
    }

    pub(crate) fn evaluated(&mut self, want: Want) -> Result<()> {
        self.hear(|shown, energies| {
            shown.fresh.forces = false;
            let energies = energies.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b));
            if want.energy {
                shown.out.energy.iter_mut().zip(energies).for_each(|(to, e)| *to = e);
            }
            Ok(())
        })
    }

    /// Brings here what `what` names and is not here.
    pub(crate) fn ask_for(&mut self, what: Fetch) -> Result<()> {
        let missing = self.shown.iter().fold(Fetch::default(), |all, s| all.with(what.without(s.fresh)));
        if missing == Fetch::default() {
            return Ok(());
        }
        self.tell_each(|_| (Command::Fetch(missing), Vec::new()))?;
        self.hear(|shown, mut body| {
            let n3 = 3 * shown.batch.atoms();
            if missing.positions {
                take(&mut shown.state.phase, 0..n3, &mut body)?;
            }
            if missing.velocities {
                take(&mut shown.state.phase, n3..2 * n3, &mut body)?;
            }
            if missing.forces {
                take(&mut shown.out.forces, 0..n3, &mut body)?;
            }
            shown.fresh = shown.fresh.with(missing);
            Ok(())
        })
    }

    fn fetch_good(&mut self, i: usize) -> Result<()> {
        self.messages.send(i + 1, &pack(&Order { kt: Vec::new(), command: Command::LastGood }, &[])?)?;
        let message = self.messages.receive(i + 1)?;
        let (_, mut body): (Answer, _) = unpack(&message)?;
        let n3 = 3 * self.shown[i].batch.atoms();
        take(&mut self.shown[i].good, 0..n3, &mut body)
    }

    /// Sends every process its part of a state that `shown` has now.
    pub(crate) fn restore(&mut self) -> Result<()> {
        self.kt.iter_mut().for_each(Vec::clear);
        self.tell_each(|shown| {
            let (head, body) = Head::of(&shown.state);
            (Command::Restore(head, shown.frozen.clone()), body)
        })?;
        self.hear(|shown, _| {
            shown.fresh = Fetch::default();
            Ok(())
        })?;
        self.ask_for(Fetch::ALL)
    }

    pub(crate) fn acceptance(&self) -> impl Iterator<Item = Option<Acceptance>> {
        self.acceptance.iter().copied()
    }

    pub(crate) fn take_divergences(&mut self) -> impl Iterator<Item = Divergence> {
        self.divergences.drain(..)
    }
}

/// Tells every other process to end.
///
/// # Errors
/// Where the connection to one of them is lost.
pub fn dismiss(messages: &dyn Messages) -> Result<()> {
    let order = pack(&Order { kt: Vec::new(), command: Command::Stop }, &[])?;
    (1..messages.ranks()).try_for_each(|rank| messages.send(rank, &order))
}

/// The other side: makes the ensemble of this process's share with `make` from its initial state and its task, and does what
/// root says until it is [dismissed](dismiss). What goes wrong in between is said to root.
///
/// # Errors
/// Where the connection is lost, or root and this process do not understand each other.
pub fn serve(messages: &dyn Messages, make: impl FnOnce(&State, &str) -> std::result::Result<Ensemble, String>) -> Result<()> {
    let mut make = Some(make);
    let mut ensemble: Option<Ensemble> = None;
    loop {
        let message = messages.receive(0)?;
        let (order, rest): (Order, _) = unpack(&message)?;
        let mut body = Vec::new();
        let done = match (order.command, &mut ensemble) {
            (Command::Stop, _) => return Ok(()),
            (Command::Begin(head, task), _) => match (head.state(rest), make.take()) {
                (Ok(state), Some(make)) => make(&state, &task).map(|made| ensemble = Some(made)).map_err(Failure::Other),
                (Err(e), _) => Err(Failure::of(e)),
                (_, None) => Err(Failure::Other("it was told to begin twice".into())),
            },
            (_, None) => Err(Failure::Other("it has no replicas".into())),
            (command, Some(ensemble)) => {
                let known = order.kt.iter().all(|&(replica, _)| replica < ensemble.replicas());
                if known {
                    order.kt.iter().for_each(|&(replica, kt)| ensemble.set_kt(replica, kt));
                    obey(ensemble, command, rest, &mut body).map_err(Failure::of)
                } else {
                    Err(Failure::of(broken("it is about other replicas")))
                }
            }
        };
        let mut answer = Answer { failure: done.err(), ..Answer::default() };
        if let Some(ensemble) = &mut ensemble {
            answer.frozen = (0..ensemble.replicas()).map(|r| ensemble.is_frozen(r)).collect();
            answer.divergences = ensemble.take_divergences();
            answer.acceptance = ensemble.acceptance();
        }
        messages.send(0, &pack(&answer, &body)?)?;
    }
}

fn obey(ensemble: &mut Ensemble, command: Command, rest: &[u8], body: &mut Vec<u8>) -> Result<()> {
    let replicas = 0..ensemble.replicas();
    match command {
        Command::Begin(..) | Command::Stop => {}
        Command::Run(steps) => ensemble.run(steps)?,
        Command::Evaluate(want) => {
            ensemble.evaluate(want)?;
            if want.energy {
                body.extend(replicas.flat_map(|r| ensemble.energy(r).to_le_bytes()));
            }
        }
        Command::Fetch(what) => {
            ensemble.fetch(what)?;
            if what.positions {
                replicas.clone().for_each(|r| put(ensemble.positions(r), body));
            }
            if what.velocities {
                replicas.clone().for_each(|r| put(ensemble.velocities(r), body));
            }
            if what.forces {
                replicas.for_each(|r| put(ensemble.forces(r), body));
            }
        }
        Command::Restore(head, frozen) => ensemble.restore(&head.state(rest)?, &frozen)?,
        Command::LastGood => replicas.for_each(|r| put(ensemble.last_good_positions(r), body)),
    }
    Ok(())
}

impl Failure {
    fn of(error: Error) -> Failure {
        match error {
            Error::Diverged { replica, step, what } => Failure::Diverged { replica, step, what },
            other => Failure::Other(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
