"""Evaluations per second over a UNIX socket (i-PI protocol), for 13 Lennard-Jones atoms and for a model of your choice.

    cargo build --release --workspace
    $SCOREFIELD_PEERS/bin/python benches/peers/sockets.py --program target/release/scorefield

Pairs of programs are measured in turn within each repeat: our server with our driver, a C engine with our driver
(ipi_client.c, compiled here), ASE's server code with i-PI's Python driver, and where --lammps names a `lmp`, our server with
LAMMPS. Last, with --model and --structure, the rate through sockets beside the rate inside one process.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

here = pathlib.Path(__file__).resolve().parent
SIGMA, EPSILON = 3.405, 0.0103
MODEL = f"lj:sigma={SIGMA} A,epsilon={EPSILON} eV"
BOHR, HARTREE = 0.529177210903, 27.211386245988

golden = (1 + 5**0.5) / 2
corner = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
shell = corner + [p[1:] + p[:1] for p in corner] + [p[2:] + p[:2] for p in corner]
POSITIONS = [(0.0, 0.0, 0.0)] + [tuple(c / (1 + golden**2) ** 0.5 * 1.09 * SIGMA for c in p) for p in shell]

PES = f'''
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


def simulate(program, directory, model, structure, steps, replicas=1, clients=(), threads=1, more=()):
    """Evaluations per second of a run; `clients` are started beside it."""
    out = directory / "run"
    command = [program, "simulate", structure, "--model", model, "--steps", str(steps), "--replicas", str(replicas), "--dtype", "f64"]
    command += ["--dt", "1 fs", "--temperature", "10 K", "--log-every", "0", "--trajectory-every", "0", "--quiet"]
    command += ["--threads", str(threads), "--out", str(out), "--overwrite", *more]
    running = [subprocess.Popen(c, stdout=subprocess.DEVNULL, cwd=directory) for c in clients]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for client in running:
            client.wait(30)
    finally:
        for client in running:
            client.kill()
    return json.load(open(out / "summary.json"))["steps_per_second"]


def ours(options, directory, structure, model, count, replicas=1, batch=1, drivers=1):
    name = f"bench-{os.getpid()}"
    spec = f"ipi:unix={name},batch={batch},clients={drivers}"
    drive = [options.program, "drive", "--model", model, "--structure", structure, "--unix", name, "--quiet", "--threads", "1"]
    return simulate(options.program, directory, spec, structure, count // replicas, replicas, [drive] * drivers)


def c_engine(options, directory, structure):
    binary, path = directory / "ipi_client", directory / "socket"
    if not binary.exists():
        subprocess.run(["cc", "-O2", "-o", binary, here / "ipi_client.c"], check=True)
    text = "\n".join(" ".join(repr(c / BOHR) for c in p) for p in POSITIONS)
    engine = subprocess.Popen([binary, path, str(options.count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    drive = [options.program, "drive", "--model", MODEL, "--structure", structure, "--prefix", f"{directory}/", "--unix", "socket"]
    driver = subprocess.Popen([*drive, "--quiet", "--threads", "1"])
    output, _ = engine.communicate(text)
    assert engine.returncode == 0 and driver.wait(30) == 0
    return float(output.split()[0])


def python_pair(options, directory):
    """ASE's server code, without what ASE does around it, and i-PI's driver."""
    import numpy
    from ase.calculators.socketio import SocketServer

    (directory / "pes.py").write_text(PES)
    name = f"bench-python-{os.getpid()}"
    server = SocketServer(unixsocket=name)
    driver = pathlib.Path(sys.executable).parent / "i-pi-driver-py"
    process = subprocess.Popen([driver, "-u", "-a", name, "-m", "custom", "-P", directory / "pes.py"], stdout=subprocess.DEVNULL)
    try:
        server._accept()
        x, cell, count = numpy.array(POSITIONS), numpy.eye(3) * 500, max(options.count // 10, 100)
        server.protocol.calculate(x, cell)
        start = time.perf_counter()
        for i in range(count):
            x[0, 0] += 1e-3 if i % 2 else -1e-3
            server.protocol.calculate(x, cell)
        rate = count / (time.perf_counter() - start)
        # i-PI's driver does not notice a hang-up.
        server.protocol.end()
        process.wait(30)
        server.close()
    finally:
        process.kill()
    return rate


LAMMPS = """units metal
atom_style atomic
atom_modify map array
boundary p p p
read_data data.lj13
pair_style lj/cut 40
pair_coeff 1 1 {epsilon} {sigma}
pair_modify shift no
neighbor 2.0 bin
fix 1 all ipi {name} 31415 unix
run 100000000
"""


def lammps(options, directory, structure):
    name = f"bench-lammps-{os.getpid()}"
    atoms = "\n".join(f"{i + 1} 1 {x} {y} {z}" for i, (x, y, z) in enumerate(POSITIONS))
    box = "\n".join(f"-100 100 {a}lo {a}hi" for a in "xyz")
    (directory / "data.lj13").write_text(f"LJ13\n\n13 atoms\n1 atom types\n{box}\n\nMasses\n\n1 39.948\n\nAtoms\n\n{atoms}\n")
    (directory / "in.lj13").write_text(LAMMPS.format(epsilon=EPSILON, sigma=SIGMA, name=name))
    client = [options.lammps, "-log", "none", "-screen", "none", "-in", "in.lj13"]
    return simulate(options.program, directory, f"ipi:unix={name}", structure, options.count, clients=[client])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/scorefield")
    parser.add_argument("--count", type=int, default=100_000, help="evaluations of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lammps", help="the lmp program")
    parser.add_argument("--model", help="a model whose rate through sockets is compared with the rate in one process")
    parser.add_argument("--structure", help="its structure")
    parser.add_argument("--steps", type=int, default=300, help="steps for that model")
    options = parser.parse_args()
    options.program = str(pathlib.Path(options.program).resolve())
    directory = pathlib.Path(tempfile.mkdtemp())
    structure = str(directory / "cluster.xyz")
    with open(structure, "w") as f:
        f.write("13\n\n" + "".join("Ar %.10f %.10f %.10f\n" % p for p in POSITIONS))
    rows = {
        "our server, our driver": lambda: ours(options, directory, structure, MODEL, options.count),
        "our server, our driver, 32 replicas, 2 messages of 16": lambda: ours(options, directory, structure, MODEL, 5 * options.count, 32, 16),
        "our server, two of our drivers, 2 replicas": lambda: ours(options, directory, structure, MODEL, options.count, 2, 1, 2),
        "C engine, our driver": lambda: c_engine(options, directory, structure),
        "ASE's server code, i-PI's driver": lambda: python_pair(options, directory),
    }
    if options.lammps:
        rows["our server, LAMMPS"] = lambda: lammps(options, directory, structure)
    if options.model:
        model, molecule, steps = options.model, str(pathlib.Path(options.structure).resolve()), options.steps
        rows["the model in one process"] = lambda: simulate(options.program, directory, model, molecule, steps)
        rows["the model through sockets"] = lambda: ours(options, directory, molecule, model, steps)
    rates = {name: [] for name in rows}
    for _ in range(options.repeats):
        for name, measure in rows.items():
            rates[name].append(measure())
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {options.repeats}")
    for name, values in rates.items():
        print(f"{statistics.median(values):12.1f}/s  {name}  ({min(values):.0f} to {max(values):.0f})")
    if options.model:
        pairs = zip(rates["the model through sockets"], rates["the model in one process"])
        print(f"through sockets / in one process: {statistics.median(a / b for a, b in pairs):.3f}")
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
