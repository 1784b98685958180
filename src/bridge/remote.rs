//! A force provider whose forces come from the clients of a server.

use super::client::{Answer, Client, Fault, Job};
use super::server::{Server, ServerError, ServerOptions, TICK};
use super::sys;
use super::transport::Address;
use scorefield_integrators::{Batch, Capabilities, Clock, DType, Error as ContractError, ForceProvider, Input, Kind, Output};
use scorefield_models::remote::RemoteSpec;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Forces from clients. Forks share one server; a replica's forces come from one client, and stay with it while it lives.
pub struct Remote {
    capabilities: Capabilities,
    server: Arc<Server>,
    jobs: Vec<Job>,
    pending: Vec<usize>,
    /// Clients at work, each with its job.
    held: Vec<(Client, usize)>,
    watches: Vec<sys::Watch>,
}

impl Remote {
    /// Listens where `spec` says.
    ///
    /// # Errors
    /// Where `spec` makes no sense, or its address cannot be listened at.
    pub fn open(spec: &RemoteSpec, quiet: bool) -> scorefield_models::Result<Self> {
        let refuse = |reason: String| scorefield_models::Error::spec("ipi", reason);
        let settings = spec.settings()?;
        let address = match (&spec.unix, spec.port) {
            (Some(name), None) if spec.host.is_none() && !name.is_empty() => Address::Unix(format!("{}{name}", spec.prefix).into()),
            (None, Some(port)) => Address::Tcp(spec.host.clone().unwrap_or_else(|| "localhost".into()), port),
            _ => return Err(refuse("where to listen? Write `ipi:unix=NAME` or `ipi:HOST:PORT`".into())),
        };
        let capabilities = Capabilities {
            kind: settings.kind,
            conservative: settings.kind != Kind::PseudoForce,
            energy: settings.energy,
            energies_comparable: false,
            virial: true,
            periodic: true,
            graph_safe: false,
            ..Capabilities::potential(format!("clients at {address}"))
        };
        let server = Server::listen(ServerOptions {
            address,
            clients: settings.clients,
            batch: settings.batch,
            classic: settings.classic,
            timeout: settings.timeout,
            wait: settings.wait,
            edge: settings.edge,
            quiet,
        })
        .map_err(|e| refuse(e.to_string()))?;
        Ok(Remote::new(capabilities, Arc::new(server)))
    }

    fn new(capabilities: Capabilities, server: Arc<Server>) -> Self {
        Remote { capabilities, server, jobs: Vec::new(), pending: Vec::new(), held: Vec::new(), watches: Vec::new() }
    }

    /// Shares out all jobs and collects all answers.
    fn collect(&mut self, input: &Input<'_>, out: &mut Output) -> Result<(), ServerError> {
        self.pending.clear();
        // The last is taken first.
        self.pending.extend((0..self.jobs.len()).rev());
        self.jobs.iter_mut().for_each(|j| j.lost = 0);
        loop {
            while !self.pending.is_empty() {
                let Some(client) = self.server.acquire(&self.jobs, &self.pending, self.held.is_empty())? else { break };
                self.give(client, input)?;
            }
            if self.held.is_empty() {
                return Ok(());
            }
            let alone = self.wait()?;
            // Backwards, so that what is removed or added does not change places that are still to be looked at.
            for at in (0..self.held.len()).rev() {
                let timeout = self.server.options().timeout;
                if alone || self.watches[at].is_ready() || self.held[at].0.is_late(timeout) {
                    self.look_at(at, alone, timeout, input, out)?;
                }
            }
        }
    }

    /// Goes on with the client at place `at`: takes its answer and gives it more work, or gives it up.
    fn look_at(&mut self, at: usize, wait: bool, timeout: Duration, input: &Input<'_>, out: &mut Output) -> Result<(), ServerError> {
        let (client, job) = &mut self.held[at];
        match client.go_on(&self.jobs[*job], input, self.server.manners(), timeout, wait) {
            Ok(None) => Ok(()),
            Ok(Some(answer)) => {
                check_extras(client, &answer, &self.capabilities)?;
                take(client, &answer, &self.jobs[*job], input, out)?;
                self.jobs[*job].home = client.number;
                let (client, _) = self.held.swap_remove(at);
                // Somebody else may have waited longer.
                if self.pending.is_empty() || (!self.held.is_empty() && self.server.is_wanted()) {
                    self.server.release(client);
                    return Ok(());
                }
                self.give(client, input)
            }
            Err(fault) => {
                let (client, job) = self.held.swap_remove(at);
                self.lose(client, &fault, job, input)
            }
        }
    }

    /// Gives a client work: what it did before, else what is new, else any.
    fn give(&mut self, mut client: Client, input: &Input<'_>) -> Result<(), ServerError> {
        let last_with = |home: u64| self.pending.iter().rposition(|&j| self.jobs[j].home == home);
        let Some(place) = last_with(client.number).or_else(|| last_with(NOBODY)).or(self.pending.len().checked_sub(1)) else {
            self.server.release(client);
            return Ok(());
        };
        let job = self.pending.remove(place);
        match client.ask(&self.jobs[job], input, self.server.manners()) {
            Ok(()) => {
                self.held.push((client, job));
                Ok(())
            }
            Err(fault) => self.lose(client, &fault, job, input),
        }
    }

    /// A client is gone; its work is still to be done.
    fn lose(&mut self, client: Client, fault: &Fault, job: usize, input: &Input<'_>) -> Result<(), ServerError> {
        self.pending.push(job);
        self.server.lose(client, fault, &self.jobs[job], &time_of(input))?;
        self.jobs[job].lost += 1;
        Ok(())
    }

    /// Waits for one of the clients at work. Where there is only one and nothing else to do, reading from it waits by itself,
    /// which is one system call less: then true.
    fn wait(&mut self) -> Result<bool, ServerError> {
        if self.held.len() == 1 && self.pending.is_empty() {
            return Ok(true);
        }
        self.watches.clear();
        self.watches.extend(self.held.iter().map(|(c, _)| c.watch()));
        // Not for ever, as another client may come for work that is pending.
        sys::wait(&mut self.watches, TICK).map_err(ServerError::Wait)?;
        Ok(false)
    }
}

/// Home of what no client did yet.
const NOBODY: u64 = 0;

/// The time of a replica, for messages.
fn time_of(input: &Input<'_>) -> String {
    match input.clock {
        Clock::Physical { time } => format!(" at {time:.4} ps"),
        Clock::Diffusion { .. } | Clock::Iteration => String::new(),
    }
}

/// Copies an answer to where it belongs.
fn take(client: &Client, answer: &Answer, job: &Job, input: &Input<'_>, out: &mut Output) -> Result<(), ServerError> {
    let (length, energy) = client.units();
    let not_finite = |value: f64, what: String, b: usize| ServerError::NotFinite {
        client: client.name.clone(),
        value,
        what,
        replica: input.batch.id(b),
        at: time_of(input),
    };
    for (i, b) in job.replicas.clone().enumerate() {
        for (n, k) in input.batch.range3(b).enumerate() {
            let force = client.double(answer.forces, 3 * job.atoms * i + n);
            if !force.is_finite() {
                let what = format!("force {} on {}", ["x", "y", "z"][n % 3], input.batch.system(b).describe_atom(n / 3));
                return Err(not_finite(force, what, b));
            }
            out.forces.set(k, force * energy / length);
        }
        if input.want.energy {
            let value = client.double(answer.energies, i);
            if !value.is_finite() {
                return Err(not_finite(value, "energy".into(), b));
            }
            out.energy[b] = value * energy;
        }
        if input.want.virial {
            let virial = &mut out.virial[b];
            for (k, to) in virial.iter_mut().enumerate() {
                *to = client.double(answer.virials, 9 * i + k) * energy;
            }
            if let Some(k) = virial.iter().position(|x| !x.is_finite()) {
                return Err(not_finite(virial[k], format!("element {k} of the virial"), b));
            }
            // LAMMPS sends the upper triangle only.
            if [virial[3], virial[6], virial[7]] == [0.0; 3] {
                (virial[3], virial[6], virial[7]) = (virial[1], virial[2], virial[5]);
            }
        }
    }
    Ok(())
}

/// What our own drivers say of their models in the extras.
#[derive(Deserialize)]
struct About {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default, rename = "temperature_K")]
    temperature: Option<f64>,
    #[serde(default)]
    conservative: Option<bool>,
    #[serde(default)]
    has_energy: Option<bool>,
}

/// Checks that a client that says what its model is has the kind of model that it was taken for.
fn check_extras(client: &mut Client, answer: &Answer, capabilities: &Capabilities) -> Result<(), ServerError> {
    let about = client.new_extras(answer).and_then(|extras| serde_json::from_slice::<About>(extras).ok());
    let Some(about) = about else { return Ok(()) };
    let fail = |what: String| Err(ServerError::Mismatch { client: client.name.clone(), what });
    let at = match capabilities.kind {
        Kind::MeanForce { temperature_kelvin } => Some(temperature_kelvin),
        Kind::Physical | Kind::PseudoForce => None,
    };
    if let Some(kind) = about.kind.filter(|k| k != capabilities.kind.name() || about.temperature != at) {
        let temperature = about.temperature.map_or(String::new(), |t| format!(",temperature={t} K"));
        return fail(format!("says that it sends {kind} forces; write `forces={kind}{temperature}` in --model ipi:…"));
    }
    if about.has_energy == Some(false) && capabilities.energy {
        return fail("says that it has no energies; write `energy=false` in --model ipi:…".into());
    }
    if about.conservative == Some(false) && capabilities.conservative && capabilities.energy {
        return fail("says that its forces are not the gradient of its energy; write `energy=false` in --model ipi:…".into());
    }
    Ok(())
}

impl ForceProvider for Remote {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> scorefield_integrators::Result<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        self.jobs.clear();
        let mut start = 0;
        while start < batch.replicas() {
            let atoms = batch.range(start).len();
            let alike = (start..batch.replicas()).take_while(|&b| batch.range(b).len() == atoms);
            let count = alike.take(self.server.options().batch).count();
            self.jobs.push(Job { replicas: start..start + count, atoms, id: batch.id(start), home: NOBODY, lost: 0 });
            start += count;
        }
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> scorefield_integrators::Result<()> {
        self.capabilities.check_want(input.want)?;
        self.collect(input, out).map_err(|error| {
            // Whoever is still at work has nobody to answer to any more.
            self.server.fail(&error, self.held.len());
            self.held.clear();
            ContractError::Provider { provider: self.capabilities.name.clone(), reason: error.to_string() }
        })
    }

    fn fork(&self) -> scorefield_integrators::Result<Box<dyn ForceProvider>> {
        Ok(Box::new(Remote::new(self.capabilities.clone(), self.server.clone())))
    }
}
