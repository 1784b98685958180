//! A program as a force provider: any executable that reads positions from its standard input and writes forces to its
//! standard output, one JSON object per line.
//!
//! 1. The program starts by saying what it is:
//!    `{"scorefield":1,"name":"my force","kind":"physical","conservative":true,"energy":true,"length":"A","energy_unit":"eV"}`.
//!    `kind` is `physical`, `pseudo-force` or `mean-force` (then with `"temperature_K":300`). Units are those of [`units`].
//! 2. For each structure it gets `{"types":[6,1,…],"positions":[[x,y,z],…],"cell":[[…],[…],[…]]}` (`cell` only for periodic
//!    structures) and answers `{"energy":E,"forces":[[x,y,z],…]}`, or `{"error":"why"}`.
//! 3. Its standard input closes when it is no longer needed.
//!
//! Every thread of a run starts a program of its own. An answer that takes longer than the time-out is an error.
//!
//! [`units`]: scorefield_integrators::units

use crate::error::{Error, Result};
use scorefield_integrators::{
    Batch, Capabilities, DType, Dimension, Error as ContractError, ForceProvider, Input, Kind, Output, Quantity, UnitSystem,
};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Longest line that is read from a program: forces on about a million atoms.
const MAX_LINE: u64 = 64 << 20;

/// How to start a program that supplies forces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExternalSpec {
    /// The program and its arguments, separated by spaces (double quotes keep spaces).
    pub command: String,
    /// Longest time for one answer, the first included; default 60 s. In seconds.
    #[serde(default = "default_timeout")]
    pub timeout: f64,
}

fn default_timeout() -> f64 {
    60.0
}

impl ExternalSpec {
    /// Starts the program and reads what it is.
    ///
    /// # Errors
    /// Where it cannot be started, says nothing within the time-out, or something that is not understood.
    pub fn build(&self) -> Result<External> {
        External::start(self)
    }
}

/// What a program says of itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    scorefield: u32,
    name: String,
    kind: String,
    #[serde(default, rename = "temperature_K")]
    temperature: Option<f64>,
    conservative: bool,
    energy: bool,
    #[serde(default)]
    periodic: bool,
    #[serde(default)]
    types: Option<Vec<u32>>,
    length: String,
    energy_unit: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    #[serde(default)]
    energy: Option<f64>,
    #[serde(default)]
    forces: Vec<[f64; 3]>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Serialize)]
struct Question<'a> {
    types: &'a [u32],
    positions: &'a [[f64; 3]],
    #[serde(skip_serializing_if = "Option::is_none")]
    cell: Option<[[f64; 3]; 3]>,
}

/// A running program that supplies forces.
pub struct External {
    spec: ExternalSpec,
    capabilities: Capabilities,
    /// Internal units per unit of the program.
    length: f64,
    energy: f64,
    child: Child,
    /// Dropped first, to tell the program that it is done.
    input: Option<ChildStdin>,
    lines: Receiver<std::io::Result<String>>,
    positions: Vec<[f64; 3]>,
    request: Vec<u8>,
}

impl External {
    fn start(spec: &ExternalSpec) -> Result<Self> {
        let refuse = |reason: String| Error::Spec { context: format!("external:command={}", spec.command), reason };
        if !(spec.timeout > 0.0 && spec.timeout < 1e6) {
            return Err(refuse(format!("timeout = {} s; it must be positive", spec.timeout)));
        }
        let words = split(&spec.command).map_err(refuse)?;
        let Some((program, arguments)) = words.split_first() else {
            return Err(refuse("the command is empty; write a program and its arguments".into()));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| refuse(format!("cannot start `{program}`: {e}")))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(refuse("its standard input and output cannot be opened".into()));
        };
        // A thread of its own reads, so that a silent program is noticed.
        let (send, lines) = sync_channel(1);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            loop {
                let mut line = String::new();
                let read = reader.by_ref().take(MAX_LINE).read_line(&mut line);
                let end = !matches!(read, Ok(n) if n > 0);
                if send.send(read.map(|_| line)).is_err() || end {
                    break;
                }
            }
        });
        let mut external = External {
            spec: spec.clone(),
            capabilities: Capabilities::potential(spec.command.clone()),
            length: 1.0,
            energy: 1.0,
            child,
            input: Some(input),
            lines,
            positions: Vec::new(),
            request: Vec::new(),
        };
        let hello = external.line().map_err(&refuse)?;
        let hello: Hello = serde_json::from_str(&hello).map_err(|e| {
            refuse(format!(
                "its first line should say what it is, as in {{\"scorefield\":1,\"name\":…}}, but is `{}`: {e}",
                shorten(&hello)
            ))
        })?;
        external.understand(hello).map_err(refuse)?;
        Ok(external)
    }

    fn understand(&mut self, hello: Hello) -> std::result::Result<(), String> {
        if hello.scorefield != 1 {
            return Err(format!("it speaks version {} of the protocol; known is 1", hello.scorefield));
        }
        let kind = match (hello.kind.as_str(), hello.temperature) {
            ("physical", _) => Kind::Physical,
            ("pseudo-force", _) => Kind::PseudoForce,
            ("mean-force", Some(t)) if t > 0.0 => Kind::MeanForce { temperature_kelvin: t },
            ("mean-force", _) => return Err("a mean force needs \"temperature_K\"".into()),
            (other, _) => return Err(format!("kind `{other}` is not known; write physical, mean-force or pseudo-force")),
        };
        let unit = |unit: &str, dimension| Quantity::new(1.0, unit).resolve(dimension, UnitSystem::Si).map_err(|e| e.to_string());
        self.length = unit(&hello.length, Dimension::LENGTH)?;
        self.energy = unit(&hello.energy_unit, Dimension::ENERGY)?;
        self.capabilities = Capabilities {
            kind,
            conservative: hello.conservative,
            energy: hello.energy,
            periodic: hello.periodic,
            types: hello.types,
            graph_safe: false,
            ..Capabilities::potential(hello.name)
        };
        Ok(())
    }

    /// The program's next line.
    fn line(&mut self) -> std::result::Result<String, String> {
        match self.lines.recv_timeout(Duration::from_secs_f64(self.spec.timeout)) {
            Ok(Ok(line)) if line.ends_with('\n') => Ok(line),
            Ok(Ok(line)) if line.len() as u64 >= MAX_LINE => Err(format!("it wrote a line of more than {MAX_LINE} bytes")),
            Ok(Ok(_)) | Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.try_wait().ok().flatten().map_or(String::new(), |s| format!(" ({s})"));
                Err(format!("it ended before answering{status}; see what it wrote above"))
            }
            Ok(Err(e)) => Err(format!("its output cannot be read: {e}")),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("no answer within {} s; does it flush its output? A longer time is set by timeout=SECONDS", self.spec.timeout))
            }
        }
    }

    /// Energy and forces of one structure, in the program's units.
    fn ask(&mut self, types: &[u32], cell: Option<[[f64; 3]; 3]>) -> std::result::Result<Answer, String> {
        self.request.clear();
        let question = Question { types, positions: &self.positions, cell };
        serde_json::to_writer(&mut self.request, &question).map_err(|e| format!("the request cannot be written: {e}"))?;
        self.request.push(b'\n');
        let Some(input) = self.input.as_mut() else { return Err("its input is closed".into()) };
        let sent = input.write_all(&self.request).and_then(|()| input.flush());
        if let Err(e) = sent {
            // Its own last words say more than a broken pipe.
            return Err(self.line().err().unwrap_or_else(|| format!("its input cannot be written: {e}")));
        }
        let line = self.line()?;
        let answer: Answer = serde_json::from_str(&line).map_err(|e| format!("its answer `{}` is not understood: {e}", shorten(&line)))?;
        if let Some(error) = answer.error {
            return Err(error);
        }
        if answer.forces.len() != types.len() {
            return Err(format!("it returned {} forces for {} atoms", answer.forces.len(), types.len()));
        }
        if self.capabilities.energy && answer.energy.is_none() {
            return Err("it promised energies but returned none".into());
        }
        Ok(answer)
    }
}

impl Drop for External {
    fn drop(&mut self) {
        self.input = None;
        // A program that ends with its input does so at once; any other is stopped.
        for _ in 0..20 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ForceProvider for External {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> scorefield_integrators::Result<()> {
        self.capabilities.check_batch(batch, false, dtype)
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> scorefield_integrators::Result<()> {
        self.capabilities.check_want(input.want)?;
        self.capabilities.check_batch(input.batch, input.cells.is_some(), input.positions.dtype())?;
        for b in 0..input.batch.replicas() {
            let range = input.batch.range(b);
            self.positions.clear();
            self.positions.extend(range.clone().map(|i| [0, 1, 2].map(|a| input.positions.get(3 * i + a) / self.length)));
            let cell = input.cells.map(|cells| [0, 1, 2].map(|r| [0, 1, 2].map(|a| cells[b][3 * r + a] / self.length)));
            let system = input.batch.system(b).clone();
            let answer = self
                .ask(&system.types, cell)
                .map_err(|reason| ContractError::Provider { provider: self.capabilities.name.clone(), reason })?;
            for (i, f) in range.zip(&answer.forces) {
                for a in 0..3 {
                    out.forces.set(3 * i + a, f[a] * self.energy / self.length);
                }
            }
            if input.want.energy {
                out.energy[b] = answer.energy.unwrap_or(f64::NAN) * self.energy;
            }
        }
        Ok(())
    }

    fn fork(&self) -> scorefield_integrators::Result<Box<dyn ForceProvider>> {
        let other = External::start(&self.spec).map_err(|e| ContractError::Provider {
            provider: self.capabilities.name.clone(),
            reason: format!("cannot be started again for another thread: {e}"),
        })?;
        Ok(Box::new(other))
    }
}

/// Words separated by spaces; double quotes keep spaces.
fn split(command: &str) -> std::result::Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for c in command.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                any = true;
            }
            c if c.is_whitespace() && !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    if quoted {
        return Err("a double quote is not closed".into());
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

fn shorten(line: &str) -> String {
    let line = line.trim_end();
    if line.chars().count() <= 80 { line.to_owned() } else { format!("{}…", line.chars().take(80).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::{State, System, Want};
    use std::sync::Arc;

    fn script(body: &str) -> ExternalSpec {
        // A shell is everywhere; single quotes cannot appear in these bodies.
        ExternalSpec { command: format!("sh -c \"{}\"", body.replace('"', "'")), timeout: 2.0 }
    }

    const HELLO: &str = r#"echo '{\"scorefield\":1,\"name\":\"springs\",\"kind\":\"physical\",\"conservative\":true,\"energy\":true,\"length\":\"A\",\"energy_unit\":\"eV\"}'"#;

    fn shell(body: &str) -> (tempfile::TempDir, ExternalSpec) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program.sh");
        std::fs::write(&path, format!("{}\n{body}\n", HELLO.replace("\\\"", "\""))).unwrap();
        let command = format!("sh \"{}\"", path.display());
        (directory, ExternalSpec { command, timeout: 2.0 })
    }

    fn evaluate(provider: &mut External, replicas: usize) -> scorefield_integrators::Result<Output> {
        let batch = Batch::uniform(Arc::new(System::particles("one", 1, 1.0)), replicas, 0).unwrap();
        let state = State::at_rest(&batch, &vec![0.1; 3 * replicas], DType::F64).unwrap();
        let mut out = Output::new(&batch, DType::F64, Want::ENERGY);
        provider.prepare(&batch, DType::F64)?;
        let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: Want::ENERGY };
        provider.evaluate(&input, &mut out)?;
        Ok(out)
    }

    #[test]
    fn a_program_supplies_forces_in_its_own_units() {
        let (_kept, spec) = shell(r#"while read line; do echo '{"energy":2.0,"forces":[[1.0,0.0,-3.0]]}'; done"#);
        let mut provider = spec.build().unwrap();
        assert_eq!(provider.capabilities().name, "springs");
        let out = evaluate(&mut provider, 3).unwrap();
        let ev = scorefield_integrators::units::KJ_PER_EV;
        assert_eq!(out.energy, vec![2.0 * ev; 3]);
        for b in 0..3 {
            for (a, want) in [1.0, 0.0, -3.0].into_iter().enumerate() {
                assert!((out.forces.get(3 * b + a) - want * ev * 10.0).abs() < 1e-9);
            }
        }
        let mut other = provider.fork().unwrap();
        assert_eq!(other.capabilities().name, "springs");
        other.prepare(&Batch::uniform(Arc::new(System::particles("one", 1, 1.0)), 1, 0).unwrap(), DType::F32).unwrap();
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let start = |spec: ExternalSpec| spec.build().map(|_| ()).unwrap_err().to_string();
        let missing = ExternalSpec { command: "no-such-program-here".into(), timeout: 2.0 };
        assert!(start(missing).contains("cannot start"));
        assert!(start(ExternalSpec { command: "  ".into(), timeout: 2.0 }).contains("empty"));
        assert!(start(script("echo hello")).contains("first line"));
        assert!(start(script("exit 3")).contains("ended before"));
        let mut slow = script("sleep 5");
        slow.timeout = 0.1;
        assert!(start(slow).contains("no answer within"));
        for (body, part) in [
            ("read line; exit 1", "ended before"),
            (r#"read line; echo '{"energy":1.0,"forces":[]}'; read line"#, "0 forces for 1 atoms"),
            (r#"read line; echo '{"error":"no idea"}'; read line"#, "no idea"),
            (r#"read line; echo '{"forces":[[1,2,3]]}'; read line"#, "promised energies"),
            (r#"read line; echo '{"forces":[[1,2,'"#, "not understood"),
        ] {
            let (_kept, spec) = shell(body);
            let error = evaluate(&mut spec.build().unwrap(), 1).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("springs"), "{body}: {error}");
        }
    }

    #[test]
    fn commands_are_split_at_spaces() {
        assert_eq!(split(r#"python3 "my force.py" --x 1"#).unwrap(), ["python3", "my force.py", "--x", "1"]);
        assert!(split("a \"b").is_err());
    }
}
