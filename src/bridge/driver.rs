//! The driver's side: one connection at a time, from NEEDINIT to EXIT.

use super::forces::{Answer, Forces, MAX_ATOMS};
use super::transport::{Address, Connection, connect};
use super::wire::{Header, Incoming, Next, WireError, push_doubles, push_text};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Most structures of one message.
const MAX_BATCH: usize = 1 << 16;

/// Why a connection ended, where nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server said EXIT.
    Exit,
    /// The server hung up between messages, as ASE does.
    HungUp,
    /// Somebody asked the driver to stop.
    Stopped,
}

/// What was done over one connection.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Why it ended.
    pub end: End,
    /// Structures evaluated.
    pub evaluations: u64,
    /// Time from the connection to its end.
    pub elapsed: Duration,
    /// Time spent on forces.
    pub busy: Duration,
}

/// Serves forces to a server.
pub struct Driver {
    forces: Forces,
    /// Whether positions and forces go through shared memory.
    shared: bool,
    /// How long the server may be silent within a message.
    patience: Duration,
}

impl Driver {
    /// A driver for `forces`. With `shared`, arrays go through shared memory as i-PI's `mode='shm'` wants it. `patience` is how
    /// long the server may be silent in the middle of a message; between messages it may be silent for ever.
    pub fn new(forces: Forces, shared: bool, patience: Duration) -> Self {
        Driver { forces, shared, patience }
    }

    /// Connects, waiting up to `wait` for the server to listen, and serves until it ends.
    ///
    /// # Errors
    /// Where nobody listens, the server breaks the protocol, or forces cannot be computed or are not finite.
    pub fn serve(&mut self, address: &Address, wait: Duration, stop: &dyn Fn() -> bool) -> Result<Report, WireError> {
        let connection = connect(address, wait, stop)?;
        // Reads give up often enough to notice a signal soon.
        let tick = self.patience.min(Duration::from_millis(200));
        connection.set_time_outs(tick, self.patience).map_err(|source| WireError::Io { doing: "setting time-outs", source })?;
        let mut session = Session {
            incoming: Incoming::new(BufReader::with_capacity(1 << 16, &connection), self.patience, stop),
            connection: &connection,
            forces: &mut self.forces,
            shared: self.shared.then(Shared::default),
            phase: Phase::NeedInit,
            native: false,
            batch: 1,
            bytes: Vec::new(),
            cells: Vec::new(),
            positions: Vec::new(),
            answer: Answer::default(),
            evaluations: 0,
            busy: Duration::ZERO,
        };
        let start = Instant::now();
        let end = session.run()?;
        Ok(Report { end, evaluations: session.evaluations, elapsed: start.elapsed(), busy: session.busy })
    }
}

/// Where the conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    NeedInit,
    Ready,
    HaveData,
}

/// One connection.
struct Session<'a> {
    incoming: Incoming<'a, BufReader<&'a Connection>>,
    connection: &'a Connection,
    forces: &'a mut Forces,
    shared: Option<Shared>,
    phase: Phase,
    /// Numbers are in nm and kJ/mol, as the server offered.
    native: bool,
    /// Structures per message.
    batch: usize,
    /// Scratch: bytes on their way in or out.
    bytes: Vec<u8>,
    cells: Vec<f64>,
    positions: Vec<f64>,
    answer: Answer,
    evaluations: u64,
    busy: Duration,
}

impl Session<'_> {
    fn run(&mut self) -> Result<End, WireError> {
        loop {
            match self.incoming.next()? {
                Next::HungUp => return Ok(End::HungUp),
                Next::Stopped => return Ok(End::Stopped),
                Next::Message(Header::Exit) => return Ok(End::Exit),
                Next::Message(Header::Status) => self.send(match self.phase {
                    Phase::NeedInit => b"NEEDINIT    ",
                    Phase::Ready if self.native => b"READY NATIVE",
                    Phase::Ready => b"READY       ",
                    Phase::HaveData => b"HAVEDATA    ",
                })?,
                Next::Message(Header::Init) => self.init()?,
                Next::Message(Header::Positions) => self.positions()?,
                Next::Message(Header::GetForce) => self.get_force()?,
            }
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<(), WireError> {
        let mut to = self.connection;
        to.write_all(message).map_err(|source| WireError::Io { doing: "answering", source })
    }

    /// `INIT`: replica, length, text. Of the text only `batch_size:N` means something here, and `native:1`, with which our own
    /// server offers numbers in our units, so that no conversion rounds them.
    fn init(&mut self) -> Result<(), WireError> {
        let _replica = self.incoming.integer("INIT")?;
        let text = self.incoming.text("INIT")?;
        (self.batch, self.native) = (1, false);
        for (key, value) in text.split(',').filter_map(|part| part.split_once(':')) {
            let key = key.trim().trim_matches(['"', '{', '\'', ' ']);
            if key == "native" {
                self.native = value.trim() == "1" && self.shared.is_none();
            } else if key == "batch_size" {
                let value = value.trim().trim_matches(['"', '}', '\'', ' ']);
                self.batch = value
                    .parse()
                    .ok()
                    .filter(|n| (1..=MAX_BATCH).contains(n))
                    .ok_or_else(|| WireError::Protocol(format!("INIT asks for batch_size {value:?}; 1 to {MAX_BATCH} are accepted")))?;
            }
        }
        self.phase = Phase::Ready;
        Ok(())
    }

    /// `POSDATA`: cells with their inverses, and positions. The forces are computed at once, so that a server that asks for the
    /// status learns when they are there.
    fn positions(&mut self) -> Result<(), WireError> {
        if self.phase == Phase::HaveData {
            return Err(WireError::Protocol("the server sent POSDATA twice without asking for the forces between".into()));
        }
        let b = self.batch;
        let mut both = [0.0; 18];
        self.cells.resize(9 * b, 0.0);
        let atoms;
        if let Some(shared) = &mut self.shared {
            atoms = self.forces.check_atoms(self.incoming.integer("POSDATA")?)?;
            if shared.segments.is_empty() {
                for name in SEGMENTS {
                    shared.open(name, &self.incoming.text("POSDATA")?)?;
                }
            }
            self.positions.resize(room(atoms, b)?, 0.0);
            shared.read("pos", &mut self.positions, &mut self.bytes)?;
            shared.read("h", &mut self.cells, &mut self.bytes)?;
        } else if b > 1 {
            atoms = self.forces.check_atoms(self.incoming.integer("POSDATA")?)?;
            self.positions.resize(room(atoms, b)?, 0.0);
            for cell in self.cells.chunks_exact_mut(9) {
                self.incoming.doubles(&mut both, &mut self.bytes, "POSDATA")?;
                cell.copy_from_slice(&both[..9]);
            }
            self.incoming.doubles(&mut self.positions, &mut self.bytes, "POSDATA")?;
        } else {
            self.incoming.doubles(&mut both, &mut self.bytes, "POSDATA")?;
            self.cells.copy_from_slice(&both[..9]);
            atoms = self.forces.check_atoms(self.incoming.integer("POSDATA")?)?;
            self.positions.resize(3 * atoms, 0.0);
            self.incoming.doubles(&mut self.positions, &mut self.bytes, "POSDATA")?;
        }
        let start = Instant::now();
        self.forces.evaluate(atoms, b, &self.cells, &self.positions, self.native, &mut self.answer).map_err(|e| match e {
            WireError::Forces(why) => WireError::Forces(format!("evaluation {}: {why}", self.evaluations + 1)),
            e => e,
        })?;
        self.busy += start.elapsed();
        self.evaluations += b as u64;
        self.phase = Phase::HaveData;
        Ok(())
    }

    /// `GETFORCE`: energies, forces, virials and what the model says of itself.
    fn get_force(&mut self) -> Result<(), WireError> {
        if self.phase != Phase::HaveData {
            return Err(WireError::Protocol("the server sent GETFORCE without POSDATA before it".into()));
        }
        let mut message = std::mem::take(&mut self.bytes);
        message.clear();
        message.extend_from_slice(b"FORCEREADY  ");
        if let Some(shared) = &self.shared {
            shared.write("pot", &self.answer.energy)?;
            shared.write("force", &self.answer.forces)?;
            shared.write("vir", &self.answer.virial)?;
        } else {
            push_doubles(&mut message, &self.answer.energy);
            message.extend_from_slice(&(self.answer.atoms as i32).to_le_bytes());
            push_doubles(&mut message, &self.answer.forces);
            push_doubles(&mut message, &self.answer.virial);
        }
        for _ in 0..self.batch {
            push_text(&mut message, self.forces.extras(self.native));
        }
        let sent = self.send(&message);
        self.bytes = message;
        self.phase = Phase::Ready;
        sent
    }
}

/// Coordinates of a message, where they are not too many.
fn room(atoms: usize, batch: usize) -> Result<usize, WireError> {
    let total = atoms.saturating_mul(batch);
    if total > MAX_ATOMS {
        return Err(WireError::Protocol(format!(
            "POSDATA announces {batch} structures of {atoms} atoms; {MAX_ATOMS} atoms in all are accepted"
        )));
    }
    Ok(3 * total)
}

/// Names of i-PI's segments, in the order in which they are announced.
const SEGMENTS: [&str; 6] = ["pos", "h", "ih", "pot", "force", "vir"];

/// Arrays that the server keeps in shared memory. They are files of a memory file system; one copy each way costs less than
/// what they hold, and no other process can make a read or write fail the way a mapped page can.
#[derive(Default)]
struct Shared {
    segments: Vec<(&'static str, File)>,
}

impl Shared {
    fn open(&mut self, kind: &'static str, name: &str) -> Result<(), WireError> {
        let name = name.trim_start_matches('/').trim_end_matches('\0');
        if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) {
            return Err(WireError::Protocol(format!("the server's segment `{}` for {kind} is no name", name.escape_debug())));
        }
        let path = std::path::Path::new("/dev/shm").join(name);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|e| {
            WireError::Protocol(format!("cannot open the shared memory {}: {e}; both programs must run on one machine", path.display()))
        })?;
        self.segments.push((kind, file));
        Ok(())
    }

    fn file(&self, kind: &str) -> Result<&File, WireError> {
        let found = self.segments.iter().find(|s| s.0 == kind).map(|s| &s.1);
        found.ok_or_else(|| WireError::Protocol(format!("the server has not announced its segment for {kind}")))
    }

    fn read(&self, kind: &'static str, to: &mut [f64], bytes: &mut Vec<u8>) -> Result<(), WireError> {
        bytes.resize(8 * to.len(), 0);
        self.file(kind)?.read_exact_at(bytes, 0).map_err(|source| WireError::Io { doing: "reading shared memory", source })?;
        for (x, b) in to.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *x = f64::from_le_bytes(*b);
        }
        Ok(())
    }

    fn write(&self, kind: &'static str, values: &[f64]) -> Result<(), WireError> {
        let mut bytes = Vec::with_capacity(8 * values.len());
        push_doubles(&mut bytes, values);
        let file = self.file(kind)?;
        // A segment has a fixed size: a file that would grow was made for less.
        let size = file.metadata().map(|m| m.len()).unwrap_or(0);
        if size < bytes.len() as u64 {
            return Err(WireError::Protocol(format!("the segment for {kind} has {size} bytes, {} are needed", bytes.len())));
        }
        file.write_all_at(&bytes, 0).map_err(|source| WireError::Io { doing: "writing shared memory", source })
    }
}
