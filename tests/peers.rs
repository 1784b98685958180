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
