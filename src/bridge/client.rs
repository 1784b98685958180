//! One client of our server: what it wants to be told, and what it answers, byte by byte.

use super::sys;
use super::transport::Connection;
use super::wire::{HEADER, is_time_out, push_doubles, push_text};
use scorefield_integrators::Input;
use scorefield_integrators::units::{KJ_PER_HARTREE, NM_PER_BOHR};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Longest extras of one structure.
const MAX_EXTRAS: usize = 1 << 20;

/// Why a client is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it hung up {0}")]
    HungUp(&'static str),
    #[error("the connection broke: {0}")]
    Broken(std::io::Error),
    #[error("it was silent for {:.1} s (timeout)", .0.as_secs_f64())]
    Silent(Duration),
    #[error("{0}")]
    Protocol(String),
}

impl Fault {
    /// True where the client does something that it will do again.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Fault::Protocol(_))
    }
}

/// What every client of a server is told.
#[derive(Clone, Debug)]
pub(super) struct Manners {
    /// Structures in one message.
    pub(super) batch: usize,
    /// Whether to ask for the status at each step.
    pub(super) classic: bool,
    /// Edge of the cell for systems without one, nm.
    pub(super) edge: f64,
}

/// Structures that make up one message.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Replicas of the batch; all have as many atoms.
    pub(super) replicas: Range<usize>,
    pub(super) atoms: usize,
    /// Global id of the first.
    pub(super) id: u32,
    /// Client that did it last.
    pub(super) home: u64,
    /// Clients that were lost over it in this evaluation.
    pub(super) lost: u32,
}

/// Where the conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// STATUS was sent before positions.
    Greeted,
    /// INIT and STATUS were sent.
    Introduced,
    /// Positions and STATUS were sent.
    Computing,
    /// GETFORCE was sent.
    Asked,
}

/// What a client does at the start of an evaluation, as far as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    Unknown,
    /// It answered once; the next STATUS tells whether it stays initialised.
    Met,
    /// It takes positions at once.
    Ready,
    /// It wants INIT each time.
    Forgets,
}

/// One connection.
pub(super) struct Client {
    pub(super) number: u64,
    pub(super) name: String,
    connection: Connection,
    phase: Phase,
    habit: Habit,
    /// Numbers go over the wire in our units, see [`Client::introduce`].
    native: bool,
    out: Vec<u8>,
    sent: usize,
    incoming: Vec<u8>,
    got: usize,
    /// When the present exchange began.
    asked_at: Instant,
    pub(super) evaluations: u64,
    pub(super) busy: Duration,
    /// The last extras that were looked at.
    extras: Vec<u8>,
}

/// A whole answer: places in the client's buffer.
pub(super) struct Answer {
    pub(super) energies: usize,
    pub(super) forces: usize,
    pub(super) virials: usize,
    pub(super) extras: Range<usize>,
}

impl Client {
    pub(super) fn new(number: u64, name: String, connection: Connection) -> Self {
        Client {
            number,
            name: format!("client {number} ({name})"),
            connection,
            phase: Phase::Idle,
            habit: Habit::Unknown,
            native: false,
            out: Vec::new(),
            sent: 0,
            incoming: vec![0; 4096],
            got: 0,
            asked_at: Instant::now(),
            evaluations: 0,
            busy: Duration::ZERO,
            extras: Vec::new(),
        }
    }

    /// nm per unit of length on the wire, and kJ/mol per unit of energy.
    pub(super) fn units(&self) -> (f64, f64) {
        if self.native { (1.0, 1.0) } else { (NM_PER_BOHR, KJ_PER_HARTREE) }
    }

    pub(super) fn watch(&self) -> sys::Watch {
        sys::Watch::new(&self.connection, self.sent < self.out.len())
    }

    /// True where an answer is overdue.
    pub(super) fn is_late(&self, timeout: Duration) -> bool {
        self.asked_at.elapsed() >= timeout
    }

    /// True where the client went away while it had nothing to do.
    pub(super) fn is_gone(&self) -> bool {
        sys::has_hung_up(&self.connection)
    }

    /// Sends structures, or what must come before them.
    pub(super) fn ask(&mut self, job: &Job, input: &Input<'_>, manners: &Manners) -> Result<(), Fault> {
        self.asked_at = Instant::now();
        self.out.clear();
        (self.sent, self.got) = (0, 0);
        match self.habit {
            Habit::Ready | Habit::Forgets if !manners.classic => {
                if self.habit == Habit::Forgets {
                    self.introduce(job.id, manners);
                }
                self.positions(job, input, manners);
            }
            _ => {
                self.out.extend_from_slice(b"STATUS      ");
                self.phase = Phase::Greeted;
            }
        }
        self.flush()
    }

    /// `INIT`: the replica and what a client may want to know. Besides i-PI's `batch_size` it offers numbers in our units, so that
    /// no conversion rounds them; a client that takes the offer says so when it is asked for its status.
    fn introduce(&mut self, id: u32, manners: &Manners) {
        self.out.extend_from_slice(b"INIT        ");
        self.out.extend_from_slice(&(id as i32).to_le_bytes());
        let text = if manners.batch > 1 { format!("native:1, batch_size:{}", manners.batch) } else { "native:1".to_owned() };
        push_text(&mut self.out, &text);
    }

    /// `POSDATA`, and what asks for the forces.
    fn positions(&mut self, job: &Job, input: &Input<'_>, manners: &Manners) {
        let (length, _) = self.units();
        let out = &mut self.out;
        out.extend_from_slice(b"POSDATA     ");
        let padded = if manners.batch > 1 { manners.batch } else { job.replicas.len() };
        let replica = |i: usize| (job.replicas.start + i).min(job.replicas.end - 1);
        if manners.batch > 1 {
            out.extend_from_slice(&(job.atoms as i32).to_le_bytes());
        }
        for b in (0..padded).map(replica) {
            let mut cell = [0.0; 9];
            match input.cells {
                // Our cells have their vectors in rows.
                Some(cells) => (0..9).for_each(|k| cell[k] = cells[b][3 * (k % 3) + k / 3] / length),
                None => (0..3).for_each(|k| cell[4 * k] = manners.edge / length),
            }
            push_doubles(out, &cell);
            push_doubles(out, &inverse(&cell));
        }
        if manners.batch == 1 {
            out.extend_from_slice(&(job.atoms as i32).to_le_bytes());
        }
        for b in (0..padded).map(replica) {
            out.extend(input.batch.range3(b).flat_map(|k| (input.positions.get(k) / length).to_le_bytes()));
        }
        if manners.classic {
            out.extend_from_slice(b"STATUS      ");
            self.phase = Phase::Computing;
        } else {
            out.extend_from_slice(b"GETFORCE    ");
            self.phase = Phase::Asked;
        }
        let fixed = HEADER + 4 + padded * (84 + 24 * job.atoms);
        if self.incoming.len() < fixed + 4096 {
            self.incoming.resize(fixed + 4096, 0);
        }
    }

    /// Sends what can be sent without waiting.
    fn flush(&mut self) -> Result<(), Fault> {
        while self.sent < self.out.len() {
            match sys::send(&self.connection, &self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if is_time_out(&e) => break,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.broken(e)),
            }
        }
        Ok(())
    }

    fn broken(&self, error: std::io::Error) -> Fault {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        match error.kind() {
            BrokenPipe | ConnectionReset => Fault::HungUp(self.moment()),
            _ => Fault::Broken(error),
        }
    }

    /// What was going on.
    fn moment(&self) -> &'static str {
        match (self.phase, self.got) {
            (Phase::Idle, _) => "between evaluations",
            (Phase::Greeted, _) => "when it was asked for its status",
            (Phase::Introduced, _) => "after INIT",
            (_, 0) => "instead of answering",
            _ => "in the middle of its answer",
        }
    }

    /// Goes on with the conversation as far as the client's bytes allow; with `wait`, waits up to the socket's time-out for some.
    /// The answer, once all of it is there.
    pub(super) fn go_on(
        &mut self,
        job: &Job,
        input: &Input<'_>,
        manners: &Manners,
        timeout: Duration,
        wait: bool,
    ) -> Result<Option<Answer>, Fault> {
        self.flush()?;
        let all_sent = self.sent == self.out.len();
        if self.got == self.incoming.len() {
            self.incoming.resize(2 * self.got, 0);
        }
        match sys::receive(&self.connection, &mut self.incoming[self.got..], wait && all_sent) {
            Ok(0) => return Err(Fault::HungUp(self.moment())),
            Ok(n) => self.got += n,
            Err(e) if is_time_out(&e) || e.kind() == std::io::ErrorKind::Interrupted => {
                let silent = self.asked_at.elapsed();
                return if silent >= timeout { Err(Fault::Silent(silent)) } else { Ok(None) };
            }
            Err(e) => return Err(self.broken(e)),
        }
        if self.phase == Phase::Asked {
            let answer = self.answer(job, manners)?;
            if answer.is_some() {
                self.phase = Phase::Idle;
                self.evaluations += job.replicas.len() as u64;
                self.busy += self.asked_at.elapsed();
                self.habit = if self.habit == Habit::Unknown { Habit::Met } else { self.habit };
            }
            return Ok(answer);
        }
        if self.got >= HEADER {
            self.status(job, input, manners)?;
            self.flush()?;
        }
        Ok(None)
    }

    /// Understands an answer to STATUS and sends what comes next.
    fn status(&mut self, job: &Job, input: &Input<'_>, manners: &Manners) -> Result<(), Fault> {
        let word: [u8; HEADER] = std::array::from_fn(|i| self.incoming[i]);
        if self.got > HEADER {
            return Err(Fault::Protocol(format!("it sent {} bytes where the {HEADER} of a status were asked for", self.got)));
        }
        self.got = 0;
        self.out.clear();
        self.sent = 0;
        match (&word, self.phase) {
            (b"NEEDINIT    ", Phase::Greeted) => {
                if self.habit == Habit::Met {
                    self.habit = Habit::Forgets;
                }
                self.introduce(job.id, manners);
                self.out.extend_from_slice(b"STATUS      ");
                self.phase = Phase::Introduced;
            }
            (b"READY NATIVE", Phase::Introduced) => {
                self.native = true;
                self.positions(job, input, manners);
            }
            (b"READY       " | b"READY NATIVE", Phase::Greeted | Phase::Introduced) => {
                if self.habit == Habit::Met && self.phase == Phase::Greeted {
                    self.habit = Habit::Ready;
                }
                if manners.batch > 1 && self.phase == Phase::Greeted && self.habit == Habit::Unknown {
                    return Err(Fault::Protocol("it does not ask for INIT, which announces batches; leave `batch` out".into()));
                }
                self.positions(job, input, manners);
            }
            (b"HAVEDATA    ", Phase::Computing) => {
                self.out.extend_from_slice(b"GETFORCE    ");
                self.phase = Phase::Asked;
            }
            _ => {
                let asked = match self.phase {
                    Phase::Computing => "HAVEDATA was expected",
                    Phase::Introduced => "READY was expected",
                    _ => "NEEDINIT or READY was expected",
                };
                return Err(Fault::Protocol(format!("it answered `{}` to STATUS; {asked}", word.escape_ascii())));
            }
        }
        Ok(())
    }

    /// The answer, where all of it has come; what cannot become one is refused as soon as it shows.
    fn answer(&self, job: &Job, manners: &Manners) -> Result<Option<Answer>, Fault> {
        let bytes = &self.incoming[..self.got];
        let structures = if manners.batch > 1 { manners.batch } else { 1 };
        let word = b"FORCEREADY  ";
        let seen = bytes.len().min(HEADER);
        if bytes[..seen] != word[..seen] {
            return Err(Fault::Protocol(format!("it answered `{}` to GETFORCE; FORCEREADY was expected", bytes[..seen].escape_ascii())));
        }
        let integer = |at: usize| bytes.get(at..at + 4).map(|b| i32::from_le_bytes(std::array::from_fn(|i| b[i])));
        let energies = HEADER;
        let count = energies + 8 * structures;
        let Some(atoms) = integer(count) else { return Ok(None) };
        if usize::try_from(atoms) != Ok(job.atoms) {
            return Err(Fault::Protocol(format!(
                "it answers for {atoms} atoms where {} were sent; its input is of another system",
                job.atoms
            )));
        }
        let forces = count + 4;
        let virials = forces + 24 * job.atoms * structures;
        let mut end = virials + 72 * structures;
        let mut first = end..end;
        for i in 0..structures {
            let Some(length) = integer(end) else { return Ok(None) };
            let Some(length) = usize::try_from(length).ok().filter(|&n| n <= MAX_EXTRAS) else {
                return Err(Fault::Protocol(format!("it announces extras of {length} bytes; at most {MAX_EXTRAS} are accepted")));
            };
            if i == 0 {
                first = end + 4..end + 4 + length;
            }
            end += 4 + length;
        }
        if self.got > end {
            return Err(Fault::Protocol(format!("it sent {} bytes after its answer", self.got - end)));
        }
        Ok((self.got == end).then_some(Answer { energies, forces, virials, extras: first }))
    }

    /// Double `k` of the block that begins at byte `at` of the answer.
    pub(super) fn double(&self, at: usize, k: usize) -> f64 {
        let at = at + 8 * k;
        f64::from_le_bytes(std::array::from_fn(|i| self.incoming[at + i]))
    }

    /// Extras, where they differ from those of the last answer.
    pub(super) fn new_extras(&mut self, answer: &Answer) -> Option<&[u8]> {
        let extras = &self.incoming[answer.extras.clone()];
        if self.extras == extras {
            return None;
        }
        self.extras.clear();
        self.extras.extend_from_slice(extras);
        Some(&self.extras)
    }

    /// Says goodbye; a client that has gone already does not mind.
    pub(super) fn exit(&self) {
        if self.phase == Phase::Idle {
            let _ = sys::send(&self.connection, b"EXIT        ");
        }
    }
}

/// The inverse of a 3 by 3 matrix; of one that has none, zeros.
fn inverse(m: &[f64; 9]) -> [f64; 9] {
    let minor = |a: usize, b: usize, c: usize, d: usize| m[a] * m[d] - m[b] * m[c];
    let adjugate = [
        minor(4, 5, 7, 8),
        -minor(1, 2, 7, 8),
        minor(1, 2, 4, 5),
        -minor(3, 5, 6, 8),
        minor(0, 2, 6, 8),
        -minor(0, 2, 3, 5),
        minor(3, 4, 6, 7),
        -minor(0, 1, 6, 7),
        minor(0, 1, 3, 4),
    ];
    let determinant = m[0] * adjugate[0] + m[1] * adjugate[3] + m[2] * adjugate[6];
    if determinant == 0.0 { [0.0; 9] } else { adjugate.map(|x| x / determinant) }
}
