"""The installed package beside closed formulas, ASE and OpenMM. Run by tests/wheel.rs; `bindings.py REPOSITORY [timings]`."""

import json
import pickle
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np

import scorefield

REPOSITORY = Path(sys.argv[1])
PEPTIDE = REPOSITORY / "data/alanine-dipeptide"
SIGMA, EPSILON = 0.3405, 0.0103 * scorefield.KJ_PER_EV
ARGON = "lj:sigma=3.405 A,epsilon=0.0103 eV"


def cluster():
    """An icosahedron of 13 atoms, a little shaken, in nm."""
    golden = (1 + 5**0.5) / 2
    shell = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    shell = np.array(shell + [p[1:] + p[:1] for p in shell] + [p[2:] + p[:2] for p in shell]) / (1 + golden**2) ** 0.5
    x = np.vstack([[(0, 0, 0)], shell]) * 1.1 * SIGMA
    return x + 0.005 * np.sin(np.arange(39)).reshape(13, 3)


def own(x):
    """Lennard-Jones by formula."""
    d = x[:, None] - x[None]
    r2 = (d**2).sum(-1) + np.eye(len(x)) * 1e30
    s6 = (SIGMA**2 / r2) ** 3
    return 2 * EPSILON * (s6 * s6 - s6).sum(), ((24 * EPSILON * (2 * s6 * s6 - s6) / r2)[..., None] * d).sum(1)


def raises(kind, text, call):
    try:
        call()
    except kind as error:
        assert text in str(error), f"`{text}` is not in: {error}"
    else:
        raise AssertionError(f"{kind.__name__} with `{text}` was expected")


def test_evaluation():
    model = scorefield.load(ARGON, types=["Ar"] * 13, threads=2)
    assert model.capabilities["conservative"] and model.types.tolist() == [18] * 13 and abs(model.masses[0] - 39.95) < 0.01
    x = cluster()
    batch = np.stack([x, 1.05 * x, x + 1.0])
    together = model.evaluate(batch, virial=True)
    assert together.forces.shape == (3, 13, 3) and together.energy.shape == (3,)
    for b in range(3):
        energy, forces = own(batch[b])
        alone = model.evaluate(batch[b], virial=True)
        assert (alone.forces == together.forces[b]).all() and alone.energy == together.energy[b]
        assert abs(alone.energy / energy - 1) < 1e-12 and np.allclose(alone.forces, forces, rtol=1e-10, atol=1e-9)
        assert np.allclose(alone.virial, batch[b].T @ forces, rtol=1e-8, atol=1e-8)
    angstrom = model.evaluate(10 * x, units="angstrom")
    assert abs(angstrom.energy * scorefield.KJ_PER_EV / together.energy[0] - 1) < 1e-12
    assert np.allclose(angstrom.forces * scorefield.KJ_PER_EV * 10, together.forces[0], rtol=1e-9)
    # Arguments in any layout, and other atoms.
    assert model.evaluate(x.T.copy().T).energy == together.energy[0]
    assert abs(model.evaluate(np.float32(x)).energy / together.energy[0] - 1) < 1e-5
    assert model.evaluate(x[:5], types=[18] * 5).forces.shape == (5, 3)
    copy = pickle.loads(pickle.dumps(scorefield.load(ARGON, types=[18] * 13)))
    assert copy.evaluate(x).energy == together.energy[0]


def test_cells():
    model = scorefield.load(ARGON + ",cutoff=8 A")
    x, cell = model.positions + 0.01 * np.sin(np.arange(324)).reshape(108, 3), model.cell
    whole = model.evaluate(x, cell=cell, virial=True, atom_energy=True)
    assert model.evaluate(x, cell=np.diag(cell)).energy == whole.energy
    assert abs(whole.atom_energy.sum() / whole.energy - 1) < 1e-12
    h = 1e-6
    bent = [np.eye(3) + s * h * np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]]) for s in (1, -1)]
    slope = np.subtract(*[model.evaluate(x @ m, cell=cell @ m).energy for m in bent]) / (2 * h)
    assert abs(-slope / whole.virial[0, 1] - 1) < 1e-5, (slope, whole.virial)


def test_errors():
    raises(ValueError, "did you mean `sigma`", lambda: scorefield.load("lj:sigme=1"))
    raises(ValueError, "is no element", lambda: scorefield.load(ARGON, types=["Qq"]))
    raises(OSError, "missing.pdb", lambda: scorefield.load(ARGON, structure="missing.pdb"))
    raises(OSError, "missing.safetensors", lambda: scorefield.load("missing.safetensors"))
    model = scorefield.load(ARGON, types=[18, 18])
    x = np.array([[0, 0, 0], [0.4, 0, 0]])
    raises(ValueError, "shape (3, 3)", lambda: model.evaluate(np.zeros((3, 3))))
    raises(ValueError, "coordinate y of atom 2", lambda: model.evaluate([[0, 0, 0], [0, np.nan, 0]]))
    raises(scorefield.Error, "overlapping", lambda: model.evaluate(np.zeros((2, 3))))
    raises(ValueError, "periodic", lambda: model.evaluate(x, cell=[3, 3, 3]))
    raises(ValueError, "uncertainty", lambda: model.evaluate(x, uncertainty=True))
    raises(ValueError, "units='bohr'", lambda: model.evaluate(x, units="bohr"))
    raises(ValueError, "reduced units", lambda: scorefield.load("muller-brown").evaluate([[0, 1, 0]], units="angstrom"))
    raises(ValueError, "`leapfrog` is no integrator", lambda: model.dynamics(x, integrator="leapfrog"))
    raises(ValueError, "a time", lambda: model.dynamics(x, dt="1 kJ"))
    raises(ValueError, "no method", lambda: model.relax(x, method="newton"))
    assert np.isfinite(model.evaluate(x).energy)


def test_threads():
    """The interpreter's lock is released, and threads do not disturb each other."""
    x = cluster()
    shared, results = scorefield.load(ARGON, types=[18] * 13), [[] for _ in range(4)]

    def work(k):
        mine = shared if k % 2 else scorefield.load(ARGON, types=[18] * 13)
        results[k] = [float(mine.evaluate(x * (1 + 0.001 * i)).energy) for i in range(200)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results[0] == results[1] == results[2] == results[3] and len(set(results[0])) == 200
    # While one thread computes, this one goes on.
    many = np.broadcast_to(x, (200_000, 13, 3)).copy()
    ended = []
    thread = threading.Thread(target=lambda: ended.append(shared.evaluate(many).energy[0]))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
    thread.join()
    assert ended and turns > 1000, turns


def test_runs():
    model = scorefield.load("harmonic:k=1")
    seen = []
    run = model.dynamics(dt=0.5, temperature=1, friction=1, replicas=2000, seed=1)
    frames = list(run.frames(400, 100, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(100 * k, 400) for k in range(1, 5)] and [f.step for f in frames] == [100, 200, 300, 400]
    # BAOAB has the exact variance; ⟨v²⟩ is low by (ω dt)²/4.
    x2, v2 = (frames[-1].positions ** 2).mean(), (frames[-1].velocities ** 2).mean()
    assert abs(x2 - 1) < 5 * (2 / 6000) ** 0.5 and abs(v2 - (1 - 0.25 / 4)) < 5 * (2 / 6000) ** 0.5, (x2, v2)
    again = model.dynamics(dt=0.5, temperature=1, friction=1, replicas=2000, seed=1)
    again.run(400)
    assert (again.frame().positions == frames[-1].positions).all()

    argon = scorefield.load(ARGON, types=[18] * 13)
    x = cluster()
    verlet = argon.dynamics(x, integrator="verlet", dt="2 fs", temperature="20 K", seed=3)
    energies = [f.potential[0] + f.kinetic[0] for f in verlet.frames(2000, 200)]
    assert np.ptp(energies) < 1e-3 * abs(energies[0]), energies
    raises(scorefield.Error, "replica", lambda: argon.dynamics(x * 0.1, dt="100 fs", temperature="1 K").run(1000))

    for method in ("fire", "lbfgs"):
        relaxed = argon.relax(np.stack([x, 1.1 * x]), method=method, fmax="1e-4 eV/A")
        assert relaxed.status == ["converged"] * 2 and np.allclose(relaxed.energy / EPSILON, -44.326801, atol=1e-4)
    alone = argon.relax(10 * x, units="angstrom", method="lbfgs", fmax="1e-4 eV/A")
    assert alone.status == ["converged"] and abs(alone.energy * scorefield.KJ_PER_EV / EPSILON + 44.326801) < 1e-4

    def stop(done, total):
        raise KeyboardInterrupt

    raises(KeyboardInterrupt, "", lambda: argon.relax(np.stack([x] * 50), progress=stop))

    weights = REPOSITORY / "data/models/muller-brown/both-0.safetensors"
    drawn = []
    samples = scorefield.sample(weights, 300, steps=300, seed=7, progress=lambda done, total: drawn.append(done))
    assert samples.shape == (300, 2) and drawn[-1] == 300 and np.isfinite(samples).all()
    assert (samples == scorefield.sample(weights, 300, steps=300, seed=7, threads=2)).all()
    # They lie in the basins of the surface that the model was trained on.
    surface = scorefield.load("muller-brown")
    energies = surface.evaluate(np.pad(samples, ((0, 0), (0, 1)))[:, None]).energy
    assert np.median(energies) < -80, np.median(energies)
    raises(KeyboardInterrupt, "", lambda: scorefield.sample(weights, 300, progress=stop))


def test_ase():
    from ase import Atoms, units
    from ase.calculators.calculator import PropertyNotImplementedError
    from ase.md.langevin import Langevin
    from ase.md.verlet import VelocityVerlet
    from ase.optimize import BFGS

    from scorefield.ase import Calculator

    atoms = Atoms("Ar13", 10 * cluster(), calculator=Calculator(ARGON))
    energy, forces = own(atoms.positions / 10)
    assert abs(atoms.get_potential_energy() * scorefield.KJ_PER_EV / energy - 1) < 1e-12
    assert np.allclose(atoms.get_forces() * scorefield.KJ_PER_EV * 10, forces, rtol=1e-9, atol=1e-9)
    assert BFGS(atoms, logfile=None).run(fmax=1e-4, steps=300)
    assert abs(atoms.get_potential_energy() / 0.0103 + 44.326801) < 1e-4
    dynamics = Langevin(atoms, 2 * units.fs, temperature_K=20, friction=0.01 / units.fs, rng=np.random.RandomState(0))
    dynamics.run(200)
    start = atoms.get_total_energy()
    VelocityVerlet(atoms, 2 * units.fs).run(200)
    assert abs(atoms.get_total_energy() - start) < 1e-3 * abs(start)
    raises(PropertyNotImplementedError, "stress", atoms.get_stress)
    raises(ValueError, "reduced units", lambda: Calculator("lj"))

    model = scorefield.load(ARGON + ",cutoff=8 A")
    crystal = Atoms("Ar108", 10 * model.positions, cell=10 * model.cell, pbc=True, calculator=Calculator(ARGON + ",cutoff=8 A"))
    crystal.rattle(0.1, seed=1)
    from ase.calculators.fd import calculate_numerical_stress

    assert np.allclose(crystal.get_stress(), calculate_numerical_stress(crystal, eps=1e-6), atol=1e-6)
    assert abs(crystal.get_potential_energies().sum() - crystal.get_potential_energy()) < 1e-10
    crystal.pbc = [True, True, False]
    raises(ValueError, "all three directions", crystal.get_potential_energy)


def test_openmm():
    import openmm
    from openmm import app, unit

    from scorefield.openmm import force

    pdb = app.PDBFile(str(PEPTIDE / "alanine-dipeptide.pdb"))
    xml = PEPTIDE / "alanine-dipeptide-vacuum.xml"
    theirs = openmm.XmlSerializer.deserialize(xml.read_text())

    def system(*forces):
        made = openmm.System()
        [made.addParticle(theirs.getParticleMass(i)) for i in range(theirs.getNumParticles())]
        [made.addForce(f) for f in forces]
        return made

    def context(system, integrator=None):
        integrator = integrator or openmm.VerletIntegrator(0.001)
        made = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
        made.setPositions(pdb.positions)
        return made

    def state(context):
        s = context.getState(getEnergy=True, getForces=True, getPositions=True)
        return s.getPotentialEnergy()._value, np.array(s.getForces(asNumpy=True)._value), np.array(s.getPositions(asNumpy=True)._value)

    mine = force(f"mm:{xml}", pdb.topology)
    (e0, f0, _), (e1, f1, _) = state(context(theirs)), state(context(system(mine)))
    assert abs(e1 / e0 - 1) < 1e-6 and np.linalg.norm(f1 - f0) < 1e-6 * np.linalg.norm(f0)
    # As XML and back.
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system(force(f"mm:{xml}", pdb.topology))))
    assert state(context(again))[0] == e1

    # Dynamics, the minimiser, and a bitwise restart from a checkpoint.
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.0005)
    integrator.setRandomNumberSeed(7)
    run = context(system(force(f"mm:{xml}", pdb.topology)), integrator)
    openmm.LocalEnergyMinimizer.minimize(run, 1.0, 100)
    assert state(run)[0] < e1
    run.setVelocitiesToTemperature(300, 5)
    integrator.step(100)
    checkpoint = run.createCheckpoint()
    integrator.step(100)
    first = state(run)[2]
    run.loadCheckpoint(checkpoint)
    integrator.step(100)
    assert (first == state(run)[2]).all()

    raises(ValueError, "no atoms along", lambda: force(f"mm:{xml}"))
    raises(ValueError, "reduced units", lambda: force("lj"))

    # OpenMM-ML: a whole system, and a region of a larger one.
    try:
        from openmmml import MLPotential
    except ImportError:
        print("skipped: openmmml is not installed")
        return
    for potential in (MLPotential(f"scorefield:mm:{xml}"), MLPotential("scorefield", model=f"mm:{xml}")):
        assert abs(state(context(potential.createSystem(pdb.topology)))[0] / e1 - 1) < 1e-12
    raises(ValueError, "which model?", lambda: MLPotential("scorefield"))
    raises(KeyError, "scorfield", lambda: MLPotential("scorfield:lj"))
    # Two copies of the peptide, 2 nm apart: one by us, one by OpenMM, nothing between them but Coulomb and Lennard-Jones.
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.add(pdb.topology, [p + openmm.Vec3(2, 0, 0) * unit.nanometer for p in pdb.positions])
    full = app.ForceField("amber99sbildn.xml").createSystem(modeller.topology, nonbondedMethod=app.NoCutoff)
    mixed = MLPotential(f"scorefield:mm:{xml}").createMixedSystem(modeller.topology, full, list(range(22)))
    energies = []
    for s in (full, mixed):
        c = openmm.Context(s, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        c.setPositions(modeller.positions)
        energies.append(c.getState(getEnergy=True).getPotentialEnergy()._value)
    assert abs(energies[1] / energies[0] - 1) < 1e-5, energies


def test_lammps():
    """fix external on one process: energies, forces and pressure of LAMMPS' own lj/cut."""
    try:
        from lammps import lammps

        quiet = ["-screen", "none", "-log", "none"]
        lammps(cmdargs=quiet).close()
    except (ImportError, OSError) as error:
        print(f"skipped: LAMMPS cannot be loaded: {error}")
        return
    from scorefield.lammps import attach

    seen = []
    for external in (False, True):
        lmp = lammps(cmdargs=quiet)
        lmp.commands_string("""
            units metal
            atom_modify map yes
            lattice fcc 5.3
            region box prism 0 4 0 4 0 4 0.3 0.2 0.1
            create_box 1 box
            create_atoms 1 box
            mass 1 39.948
            displace_atoms all random 0.2 0.2 0.2 4711 units box
            velocity all create 60 4711 loop geom
            fix 1 all nve
            timestep 0.002
            thermo_modify norm no""")
        if external:
            lmp.commands_string("pair_style zero 8.0\npair_coeff * *")
            attach(lmp, ARGON + ",cutoff=8 A", elements=["Ar"])
        else:
            lmp.commands_string("pair_style lj/cut 8.0\npair_coeff * * 0.0103 3.405")
        rows = []
        for _ in range(3):
            lmp.command("run 50")
            rows.append([lmp.get_thermo(k) for k in ("pe", "etotal", "press", "pxy", "pxz")])
        seen.append(np.array(rows))
        lmp.close()
    assert np.allclose(seen[0], seen[1], rtol=1e-9, atol=1e-7), seen


def test_torch_sim():
    """Against energies of torch-sim's own Lennard-Jones model and our ASE calculator; integrators and minimisers on our forces."""
    try:
        import torch
        import torch_sim as ts
        from torch_sim.models.lennard_jones import LennardJonesModel
    except ImportError as error:
        print(f"skipped: torch-sim cannot be loaded: {error}")
        return
    from ase.build import bulk, molecule

    from scorefield.ase import Calculator
    from scorefield.torchsim import Model

    def states(atoms, periodic=True):
        state = ts.io.atoms_to_state(atoms, torch.device("cpu"), torch.float64)
        if not periodic:
            state.pbc = torch.zeros(3, dtype=torch.bool) if torch.is_tensor(state.pbc) else False
        return state

    crystals = [bulk("Ar", "fcc", a=5.3, cubic=True).repeat(k) for k in ((4, 4, 4), (4, 4, 5), (4, 4, 4))]
    for k, atoms in enumerate(crystals):
        atoms.rattle(0.1, seed=k)
    mine = Model(ARGON + ",cutoff=8 A", threads=2)
    theirs = LennardJonesModel(sigma=3.405, epsilon=0.0103, cutoff=8.0, dtype=torch.float64, compute_forces=False, compute_stress=False)
    # Forces as gradients of their energy, since version 0.3.0 counts each pair's force twice, and cells with right angles, since it
    # takes others for their transpose.
    state = states(crystals)
    state.positions.requires_grad_()
    energy = theirs(state)["energy"]
    (gradient,) = torch.autograd.grad(energy.sum(), state.positions)
    a = mine(states(crystals))
    assert set(a) == {"energy", "forces", "stress"} and all(t.dtype == torch.float64 for t in a.values())
    assert torch.allclose(a["energy"], energy, rtol=1e-12) and torch.allclose(a["forces"], -gradient, rtol=1e-9, atol=1e-11)

    for atoms in crystals:
        atoms.set_cell(atoms.cell[:] @ [[1, 0, 0], [0.05, 1.02, 0], [0.03, 0, 0.97]], scale_atoms=True)
        atoms.calc = Calculator(ARGON + ",cutoff=8 A")
    state = states(crystals)
    a = mine(state)
    for k, (atoms, start) in enumerate(zip(crystals, (0, 256, 576), strict=True)):
        assert float(a["energy"][k]) == atoms.get_potential_energy()
        assert (a["forces"][start : start + len(atoms)].numpy() == atoms.get_forces()).all()
        assert np.allclose(a["stress"][k].numpy(), atoms.get_stress(voigt=False), rtol=1e-12, atol=1e-15)
    # Systems of several kinds, in any order, are those alone; as a dictionary, in single precision.
    alone = Model(scorefield.load(ARGON + ",cutoff=8 A", types=[18] * 256), dtype=torch.float32)(state[2])
    assert alone["forces"].dtype == torch.float32
    assert torch.allclose(alone["forces"].double(), a["forces"][-256:], atol=1e-6)

    assert Model(ARGON)(states(crystals[:1], periodic=False))["energy"].shape == (1,)

    # Later versions than 0.3 have lists of them.
    integrators, fire = getattr(ts, "Integrator", ts), getattr(ts, "Optimizer", ts.optimizers).fire
    cold = ts.optimize(system=state, model=mine, optimizer=fire, max_steps=100, autobatcher=False)
    after = mine(cold)
    assert (after["energy"] < a["energy"]).all() and after["forces"].abs().max() < 0.1 * a["forces"].abs().max()

    smooth = Model(ARGON + ",cutoff=8 A,shift=true")

    def total(steps):
        torch.manual_seed(7)
        end = ts.integrate(system=cold, model=smooth, integrator=integrators.nve, n_steps=steps, temperature=60, timestep=0.002)
        kinetic = ts.calc_kinetic_energy(masses=end.masses, momenta=end.momenta, system_idx=end.system_idx)
        return (smooth(end)["energy"] + kinetic).numpy(), kinetic.numpy()

    (before, kinetic), (after, _) = total(1), total(200)
    assert (abs(after - before) < 2e-3 * kinetic).all(), (before, after, kinetic)
    warm = ts.integrate(system=cold, model=mine, integrator=integrators.nvt_langevin, n_steps=20, temperature=60, timestep=0.002)
    assert torch.isfinite(warm.positions).all()

    gpff = REPOSITORY / "data/models/qm9/gpff-small.safetensors"
    out = Model(str(gpff))(states([molecule("H2O")], periodic=False))
    assert torch.isnan(out["energy"]).all() and torch.isfinite(out["forces"]).all()

    raises(ValueError, "reduced units", lambda: Model("lj"))
    raises(ValueError, "no virial", lambda: Model(str(gpff), compute_stress=True))


def timings():
    from ase import Atoms

    from scorefield.ase import Calculator

    x = np.array([[0, 0, 0], [0.4, 0, 0]])
    model = scorefield.load(ARGON, types=[18, 18])
    atoms = Atoms("Ar2", 10 * x, calculator=Calculator(ARGON))

    def calculator():
        atoms.calc.calculate(atoms, ["forces"])

    for name, call in (("Model.evaluate", lambda: model.evaluate(x)), ("ase.Calculator.calculate", calculator)):
        call()
        best = min(_time(call, 2000) for _ in range(5))
        print(f"{name}: {1e6 * best:.2f} µs per call")


def _time(call, n):
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


if __name__ == "__main__":
    warnings.simplefilter("error", RuntimeWarning)
    if sys.argv[2:] == ["timings"]:
        timings()
        sys.exit()
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            start = time.perf_counter()
            test()
            print(f"{name} ok, {time.perf_counter() - start:.1f} s")
    print(json.dumps({"version": scorefield.__version__}))
