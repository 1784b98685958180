//! The peers' own readers and forces beside ours. Needs `SCOREFIELD_PEERS`, a Python environment made from
//! `benches/peers/requirements.txt`; without it these tests skip and say so.

use std::path::PathBuf;
use std::process::Command;

/// Python of the peers' environment, or the reason for skipping.
fn python() -> Option<PathBuf> {
    let Some(peers) = std::env::var_os("SCOREFIELD_PEERS") else {
        eprintln!("skipped: SCOREFIELD_PEERS is not set (see benches/peers/README.md)");
        return None;
    };
    let python = PathBuf::from(peers).join("bin/python");
    assert!(python.exists(), "SCOREFIELD_PEERS is set, but {} does not exist", python.display());
    Some(python)
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}\n{}\n{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

fn scorefield() -> Command {
    Command::new(env!("CARGO_BIN_EXE_scorefield"))
}

fn data(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/alanine-dipeptide").join(file)
}

#[test]
fn openmm_computes_the_same_forces_along_our_trajectory() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    let (pdb, xml) = (data("alanine-dipeptide.pdb"), data("alanine-dipeptide-obc.xml"));
    let model = format!("mm:{}", xml.display());
    run(scorefield()
        .args(["simulate", pdb.to_str().unwrap(), "--model", &model, "--replicas", "2", "--steps", "400", "--dt", "1 fs"])
        .args(["--trajectory-every", "100", "--quiet", "--out", out.to_str().unwrap()]));
    let json = directory.path().join("forces.json");
    let trajectory = out.join("trajectory.dcd");
    run(scorefield()
        .args(["evaluate", trajectory.to_str().unwrap(), "--topology", pdb.to_str().unwrap(), "--model", &model, "--quiet"])
        .args(["--json", json.to_str().unwrap()]));
    // MDTraj reads the trajectory, OpenMM's Reference platform computes forces on it.
    let script = r#"
import json, sys
import mdtraj, numpy, openmm
trajectory, pdb, xml, mine = sys.argv[1:]
frames = mdtraj.load(trajectory, top=pdb)
mine = json.load(open(mine))["frames"]
assert len(frames) == len(mine) >= 8, (len(frames), len(mine))
system = openmm.XmlSerializer.deserialize(open(xml).read())
context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
for x, frame in zip(frames.xyz.astype(float), mine):
    context.setPositions(x)
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy()._value
    forces = numpy.array(state.getForces(asNumpy=True)._value)
    assert abs(frame["energy"] - energy) < 1e-4 * abs(energy), (frame["energy"], energy)
    error = numpy.linalg.norm(forces - numpy.array(frame["forces"])) / numpy.linalg.norm(forces)
    assert error < 1e-4, error
"#;
    run(Command::new(python).arg("-c").arg(script).args([&trajectory, &pdb, &xml, &json]));
}

#[test]
fn ase_reads_our_extended_xyz_with_energies_and_forces() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (xyz, json) = (directory.path().join("out.xyz"), directory.path().join("out.json"));
    let model = format!("mm:{}", data("alanine-dipeptide-vacuum.xml").display());
    run(scorefield().args(["evaluate", data("alanine-dipeptide.pdb").to_str().unwrap(), "--model", &model, "--quiet"]).args([
        "--json",
        json.to_str().unwrap(),
        "--extxyz",
        xyz.to_str().unwrap(),
    ]));
    let script = r#"
import json, sys
import ase.io, numpy
atoms = ase.io.read(sys.argv[1])
frame = json.load(open(sys.argv[2]))["frames"][0]
ev = 96.48533212331002
assert abs(atoms.get_potential_energy() * ev - frame["energy"]) < 1e-6 * abs(frame["energy"])
assert numpy.allclose(atoms.get_forces() * ev * 10, frame["forces"], rtol=1e-6, atol=1e-3)
assert atoms.get_chemical_symbols().count("C") == 6
"#;
    run(Command::new(python).arg("-c").arg(script).args([&xyz, &json]));
}

/// ASE as the engine, our driver as the force: the same energies and forces as ASE's own Lennard-Jones, and a relaxation.
#[test]
fn ase_runs_on_our_driver() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let structure = directory.path().join("cluster.xyz");
    let script = r#"
import subprocess, sys
import numpy
from ase import Atoms
from ase.calculators.socketio import SocketIOCalculator
from ase.optimize import LBFGS
program, structure = sys.argv[1:]
sigma, epsilon = 3.405, 0.0103
golden = (1 + 5 ** 0.5) / 2
shell = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
shell = numpy.array(shell + [p[1:] + p[:1] for p in shell] + [p[2:] + p[:2] for p in shell]) / (1 + golden ** 2) ** 0.5
atoms = Atoms("Ar13", numpy.vstack([[(0, 0, 0)], shell]) * 1.1 * sigma)
atoms.write(structure)
def own(x):
    d = x[:, None] - x[None]
    r2 = (d ** 2).sum(-1) + numpy.eye(len(x)) * 1e30
    s6 = (sigma ** 2 / r2) ** 3
    return 2 * epsilon * (s6 * s6 - s6).sum(), (24 * epsilon * (2 * s6 * s6 - s6) / r2)[..., None] * d
command = [program, "drive", "--quiet", "--model", f"lj:sigma={sigma} A,epsilon={epsilon} eV", "--structure", structure]
for kind in ("unix", "tcp"):
    if kind == "unix":
        name = "scorefield-test-%d" % __import__("os").getpid()
        calculator = SocketIOCalculator(unixsocket=name)
        command_here = command + ["--unix", name]
    else:
        import socket
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
        calculator = SocketIOCalculator(port=port)
        command_here = command + ["--host", "127.0.0.1", "--port", str(port)]
    driver = subprocess.Popen(command_here)
    try:
        atoms.calc = calculator
        atoms.rattle(0.1, seed=3)
        energy, forces = own(atoms.positions)
        assert abs(atoms.get_potential_energy() / energy - 1) < 1e-6
        assert numpy.abs(atoms.get_forces() / forces.sum(1) - 1).max() < 1e-5
        assert LBFGS(atoms, logfile=None).run(fmax=1e-4, steps=300)
        assert abs(atoms.get_potential_energy() / epsilon + 44.326801) < 1e-3, atoms.get_potential_energy() / epsilon
    finally:
        calculator.close()
    assert driver.wait(10) == 0
"#;
    run(Command::new(python).arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_scorefield")).arg(&structure));
}

/// i-PI as the engine in each of its ways to talk: UNIX sockets, TCP, shared memory; beads, batches and two drivers.
#[test]
fn i_pi_runs_on_our_driver() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let script = include_str!("data/run_ipi.py");
    for case in ["unix 1 1 1", "inet 1 1 1", "shm 1 1 1", "unix 4 4 1", "shm 4 4 1", "unix 4 1 2"] {
        run(Command::new(&python)
            .current_dir(directory.path())
            .arg("-c")
            .arg(script)
            .arg(env!("CARGO_BIN_EXE_scorefield"))
            .args(case.split(' ')));
    }
}

/// Our server with ASE's client, i-PI's driver and LAMMPS: the same forces as ours, in runs that all of them see through.
#[test]
fn other_peoples_clients_run_under_our_server() {
    let Some(python) = python() else { return };
    for client in ["ase", "ipi", "ipi-batch", "lammps"] {
        let directory = tempfile::tempdir().unwrap();
        let out = run(Command::new(&python).current_dir(directory.path()).args([
            "-c",
            include_str!("data/run_clients.py"),
            env!("CARGO_BIN_EXE_scorefield"),
            client,
        ]));
        if out.contains("skipped") {
            eprintln!("{out}");
        }
    }
}
