//! The server's side: one address, any number of clients that come and go, shared by all threads of a run.

use super::client::{Client, Fault, Job, Manners};
use super::sys;
use super::transport::{Address, Listener};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most clients at a time.
const MAX_CLIENTS: usize = 4096;
/// How often whoever waits looks around.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// Reasons that a final message quotes.
const MOST_REASONS: usize = 3;

/// Where to listen, for whom, and how long to wait.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The address.
    pub address: Address,
    /// Clients that must be there before the first evaluation.
    pub clients: usize,
    /// Structures in one message.
    pub batch: usize,
    /// Ask for the status at each step of the exchange.
    pub classic: bool,
    /// Time for one answer.
    pub timeout: Duration,
    /// Time for a client to come where there is none.
    pub wait: Duration,
    /// Edge of the cell for systems without one, nm.
    pub edge: f64,
    /// Nothing on stderr but warnings.
    pub quiet: bool,
}

/// Why clients could not supply forces.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}; choose another address, or end who listens there")]
    Listen {
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not enough clients.
    #[error(
        "{there} of {wanted} clients at {address} after {seconds:.1} s{}; start clients there, or wait longer (wait=)",
        because(reasons)
    )]
    NoClients {
        /// Where they should have come.
        address: String,
        /// How many there were.
        there: usize,
        /// How many there should be.
        wanted: usize,
        /// How long they were waited for.
        seconds: f64,
        /// What became of those there were, the last ones.
        reasons: Vec<String>,
    },
    /// The only client there was does not keep the protocol.
    #[error("the only client left cannot be used{}", because(reasons))]
    Unusable {
        /// What became of it and those before.
        reasons: Vec<String>,
    },
    /// One structure after which client after client fails.
    #[error("replica {replica}{at} cost {lost} clients one after the other{}; look for overlapping atoms in it", because(reasons))]
    Deadly {
        /// The first replica of the message.
        replica: u32,
        /// Its time, where it has one.
        at: String,
        /// Clients that were lost.
        lost: u32,
        /// What became of them.
        reasons: Vec<String>,
    },
    /// A client sent a number that is not finite.
    #[error("{client} sent {value} as {what} of replica {replica}{at}; look for overlapping atoms, or at the client's own log")]
    NotFinite {
        /// The client.
        client: String,
        /// The number.
        value: f64,
        /// Which of the numbers.
        what: String,
        /// Global replica id.
        replica: u32,
        /// Its time, where it has one.
        at: String,
    },
    /// What a client says of its model does not fit what was said of it.
    #[error("{client} {what}")]
    Mismatch {
        /// The client.
        client: String,
        /// What it says and what to do.
        what: String,
    },
    /// Another thread of the run failed.
    #[error("{0}")]
    Ended(String),
    /// The system refused.
    #[error("cannot wait for clients: {0}")]
    Wait(std::io::Error),
}

fn because(reasons: &[String]) -> String {
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

/// What all threads share.
struct Shared {
    options: ServerOptions,
    pool: Mutex<Pool>,
    changed: Condvar,
    start: Instant,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Client>,
    /// Clients, idle or not.
    alive: usize,
    /// Clients ever.
    came: u64,
    /// Threads that wait for a client.
    waiting: usize,
    /// Once there were as many clients as asked for, fewer will do.
    complete: bool,
    /// Since when clients are lacking.
    lacking: Option<Instant>,
    reasons: Vec<String>,
    failed: Option<String>,
    done: bool,
    evaluations: u64,
}

/// A listening server. When the last of those who share it lets go, its clients are told EXIT.
pub struct Server {
    shared: Arc<Shared>,
    manners: Manners,
    /// Closing it ends the thread that lets clients in.
    bell: Option<UnixStream>,
    door: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens from now on; clients may come at any time.
    ///
    /// # Errors
    /// [`ServerError::Listen`] where the address is taken or is no address of this machine.
    pub fn listen(options: ServerOptions) -> Result<Self, ServerError> {
        let fail = |source| ServerError::Listen { address: options.address.to_string(), source };
        let listener = Listener::bind(&options.address).map_err(fail)?;
        let (bell, rung) = UnixStream::pair().map_err(fail)?;
        let manners = Manners { batch: options.batch, classic: options.classic, edge: options.edge };
        let shared = Arc::new(Shared { options: options.clone(), pool: Mutex::default(), changed: Condvar::new(), start: Instant::now() });
        let for_door = shared.clone();
        let door = std::thread::Builder::new().name("clients".into()).spawn(move || let_in(&for_door, &listener, &rung)).map_err(fail)?;
        shared.say(&format!("listening for clients at {}", options.address));
        Ok(Server { shared, manners, bell: Some(bell), door: Some(door) })
    }

    pub(super) fn options(&self) -> &ServerOptions {
        &self.shared.options
    }

    pub(super) fn manners(&self) -> &Manners {
        &self.manners
    }

    /// A client for one of `jobs`, of those in `pending`: one that did one of them before, else one that did none, else any.
    /// With `wait`, waits for one; otherwise `None` where all are at work.
    pub(super) fn acquire(&self, jobs: &[Job], pending: &[usize], wait: bool) -> Result<Option<Client>, ServerError> {
        let mut pool = self.shared.lock();
        loop {
            if let Some(what) = &pool.failed {
                return Err(ServerError::Ended(what.clone()));
            }
            let wanted = if pool.complete { 1 } else { self.options().clients };
            if pool.alive >= wanted {
                pool.complete = true;
                pool.lacking = None;
                if !pool.idle.is_empty() {
                    let home = |c: &Client| pending.iter().any(|&j| jobs[j].home == c.number);
                    let at = pool.idle.iter().position(home).or_else(|| pool.idle.iter().position(|c| c.evaluations == 0));
                    return Ok(Some(pool.idle.swap_remove(at.unwrap_or(0))));
                }
            }
            if !wait {
                return Ok(None);
            }
            if pool.alive < wanted {
                let since = *pool.lacking.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.options().wait {
                    return Err(ServerError::NoClients {
                        address: self.options().address.to_string(),
                        there: pool.alive,
                        wanted,
                        seconds: since.elapsed().as_secs_f64(),
                        reasons: pool.reasons.clone(),
                    });
                }
            }
            let patience = if pool.alive < wanted { TICK.min(self.options().wait) } else { TICK };
            pool.waiting += 1;
            pool = self.shared.changed.wait_timeout(pool, patience).unwrap_or_else(PoisonError::into_inner).0;
            pool.waiting -= 1;
        }
    }

    /// True where another thread waits for a client.
    pub(super) fn is_wanted(&self) -> bool {
        self.shared.lock().waiting > 0
    }

    /// Takes a client back.
    pub(super) fn release(&self, client: Client) {
        let mut pool = self.shared.lock();
        pool.idle.push(client);
        if pool.waiting > 0 {
            self.shared.changed.notify_one();
        }
    }

    /// A client is lost while it was at work on `job`; the others that are gone too go with it.
    pub(super) fn lose(&self, client: Client, fault: &Fault, job: &Job, at: &str) -> Result<(), ServerError> {
        let seconds = self.shared.start.elapsed().as_secs_f64();
        let reason = format!("{}: {fault}, at work on replica {}{at}, after {seconds:.1} s", client.name, job.id);
        drop(client);
        let mut pool = self.shared.lock();
        pool.note(&reason);
        pool.alive -= 1;
        let before = pool.idle.len();
        pool.idle.retain(|c| !c.is_gone());
        pool.alive -= before - pool.idle.len();
        let left = pool.alive;
        if left == 0 && fault.is_lasting() {
            return Err(ServerError::Unusable { reasons: pool.reasons.clone() });
        }
        if job.lost + 1 >= MOST_LOST {
            let reasons = pool.reasons.clone();
            return Err(ServerError::Deadly { replica: job.id, at: at.to_owned(), lost: job.lost + 1, reasons });
        }
        drop(pool);
        let others = if left == 1 { "1 client is".to_owned() } else { format!("{left} clients are") };
        self.shared.warn(&format!("lost {reason}; {others} left, the work goes to the next"));
        Ok(())
    }

    /// Tells all threads that the run has failed.
    pub(super) fn fail(&self, error: &ServerError, held: usize) {
        let mut pool = self.shared.lock();
        pool.alive -= held;
        pool.failed.get_or_insert_with(|| error.to_string());
        self.shared.changed.notify_all();
    }
}

/// A structure that costs this many clients is at fault itself.
const MOST_LOST: u32 = 3;

impl Pool {
    fn note(&mut self, reason: &str) {
        if self.reasons.len() == MOST_REASONS {
            self.reasons.remove(0);
        }
        self.reasons.push(reason.to_owned());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pool> {
        // What is under the lock is whole at any moment.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: &str) {
        if !self.options.quiet {
            eprintln!("{line}");
        }
    }

    fn warn(&self, line: &str) {
        eprintln!("warning: {line}");
    }
}

/// Lets clients in until the bell rings.
fn let_in(shared: &Shared, listener: &Listener, bell: &UnixStream) {
    let mut both = [sys::Watch::new(listener, false), sys::Watch::new(bell, false)];
    loop {
        if let Err(e) = sys::wait(&mut both, Duration::from_secs(3600)) {
            shared.warn(&format!("no more clients can come: {e}"));
            return;
        }
        if both[1].is_ready() || shared.lock().done {
            return;
        }
        if !both[0].is_ready() {
            continue;
        }
        let come = listener.accept().and_then(|(connection, name)| {
            connection.set_time_outs(TICK, TICK)?;
            Ok((connection, name))
        });
        let (connection, name) = match come {
            Ok(come) => come,
            Err(e) => {
                shared.warn(&format!("a client could not come in: {e}"));
                std::thread::sleep(TICK);
                continue;
            }
        };
        let mut pool = shared.lock();
        if pool.alive >= MAX_CLIENTS {
            drop(pool);
            shared.warn(&format!("a client was sent away: there are {MAX_CLIENTS} already"));
            continue;
        }
        pool.came += 1;
        pool.alive += 1;
        let client = Client::new(pool.came, name, connection);
        let line = format!("{} joined ({} in all)", client.name, pool.alive);
        pool.idle.push(client);
        shared.changed.notify_all();
        drop(pool);
        shared.say(&line);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.lock().done = true;
        self.bell = None;
        if let Some(door) = self.door.take() {
            let _ = door.join();
        }
        let mut pool = self.shared.lock();
        let clients = std::mem::take(&mut pool.idle);
        pool.evaluations = clients.iter().map(|c| c.evaluations).sum();
        drop(pool);
        for client in &clients {
            client.exit();
            if client.evaluations > 0 {
                let mean = 1e6 * client.busy.as_secs_f64() / client.evaluations as f64;
                self.shared.say(&format!("{}: {} evaluations, {mean:.1} µs each", client.name, client.evaluations));
            }
        }
    }
}
