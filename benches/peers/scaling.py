"""Time and traffic per step of LAMMPS with `pair_style scorefield` on 1 and 2 processes, and what follows for more of them.

    cargo build --release --workspace
    $SCOREFIELD_PEERS/bin/python benches/peers/scaling.py --libraries target/release [--ani ani2x_8x_hcnof.safetensors]

For each system the time of a step is taken apart by LAMMPS (pair, communication, rest). The model behind the extrapolation is in
docs/scaling.md; its constants are printed.
"""

import argparse
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parents[2]
peers = pathlib.Path(sys.executable).parent
ARGON = "lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=8 A"
SKIN = 1.0


def argon(cells):
    return f"""units metal
atom_style atomic
newton on
lattice fcc 5.3
region box block 0 {cells} 0 {cells} 0 {cells}
create_box 1 box
create_atoms 1 box
mass 1 39.948
velocity all create 60.0 4711 loop geom
plugin load PLUGIN
pair_style scorefield "{ARGON}"
pair_coeff * * Ar
timestep 0.002
"""


def water(cells, weights):
    atoms, side = [], 3.1 * cells
    for m in range(cells**3):
        corner = [3.1 * k + 1.0 for k in (m % cells, m // cells % cells, m // cells**2)]
        for kind, x in ((1, (0, 0, 0)), (2, (0.757, 0.586, 0)), (2, (-0.757, 0.586, 0))):
            x = x if m % 2 == 0 else (x[1], x[2], x[0])
            atoms.append(f"{len(atoms) + 1} {kind} " + " ".join(str(c + d) for c, d in zip(corner, x)))
    head = f"water\n\n{len(atoms)} atoms\n2 atom types\n" + "".join(f"0 {side} {a}lo {a}hi\n" for a in "xyz")
    data = head + "\nMasses\n\n1 15.999\n2 1.008\n\nAtoms # atomic\n\n" + "\n".join(atoms) + "\n"
    text = f"""units metal
atom_style atomic
newton on
read_data data.water
velocity all create 300 4711 loop geom
plugin load PLUGIN
pair_style scorefield "ani2x:weights={weights}"
pair_coeff * * O H
timestep 0.0002
"""
    return text, data


def measure(directory, plugin, text, data, processes, steps):
    """Atoms, ghosts per process, and seconds per step: all, pair, communication."""
    text = text.replace("PLUGIN", str(plugin)) + f"neighbor {SKIN} bin\nfix 1 all nve\nthermo {steps}\nrun 2\nrun {steps}\n"
    (directory / "in.scaling").write_text(text)
    if data:
        (directory / "data.water").write_text(data)
    command = [peers / "lmp"] if processes == 1 else [peers / "mpiexec", "-n", str(processes), peers / "lmp"]
    environment = dict(os.environ, LD_LIBRARY_PATH=str(peers.parent / "lib"), OMP_NUM_THREADS="1")
    done = subprocess.run([*command, "-log", "none", "-in", "in.scaling"], cwd=directory, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    last = done.stdout[done.stdout.rindex("Loop time"):]
    loop, atoms = (float(re.search(p, last)[1]) for p in (r"Loop time of (\S+)", r"for \d+ steps with (\d+) atoms"))
    share = {k.strip(): float(v) for k, v in re.findall(r"^(\w+) +\| *[\d.e+-]* *\| *([\d.e+-]+)", last, re.M)}
    ghosts = float(re.search(r"Nghost: +(\S+) ave", last)[1])
    return int(atoms), ghosts, loop / steps, share["Pair"] / steps, share["Comm"] / steps


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--libraries", default="target/release", help="folder of libscorefield_c.so")
    arguments.add_argument("--ani", help="weights of ANI-2x")
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; best of {options.repeats} repeats")
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        plugin = directory / "scorefieldplugin.so"
        subprocess.run(["bash", root / "bridges/lammps/build.sh", options.libraries, plugin], check=True,
                       env=dict(os.environ, PYTHON=sys.executable), stdout=subprocess.DEVNULL)
        systems = [("argon", *(argon(c), None), 8.0, s) for c, s in ((10, 60), (16, 20), (24, 8))]
        if options.ani:
            systems += [("water, ANI-2x", *water(c, pathlib.Path(options.ani).resolve()), 5.1, s) for c, s in ((4, 5), (6, 3))]
        print("| system | atoms | processes | ghosts per process | step ms | pair ms | communication ms | speed-up |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for system, text, data, reach, steps in systems:
            alone = None
            for processes in (1, 2):
                runs = [measure(directory, plugin, text, data, processes, steps) for _ in range(options.repeats)]
                atoms, ghosts, step, pair, comm = min(runs, key=lambda r: r[2])
                alone = alone or step
                print(f"| {system} | {atoms} | {processes} | {ghosts:.0f} | {1e3 * step:.2f} | {1e3 * pair:.2f} | {1e3 * comm:.3f} "
                      f"| {alone / step:.2f} |")
            extrapolate(system, atoms, reach + SKIN, data and float(re.search(r"0 (\S+) xlo", data)[1]) or (atoms / 4) ** (1 / 3) * 5.3, alone)


def extrapolate(system, atoms, reach, side, step):
    """Neighbouring domains exchange positions and forces of the ghosts, 24 bytes each, in six messages there and six back."""
    density = atoms / side**3
    for per_process in (500, 2000, 8000):
        edge = (per_process / density) ** (1 / 3)
        ghosts = density * ((edge + 2 * reach) ** 3 - edge**3)
        megabytes = 2 * 24 * ghosts / 1e6
        compute = step / atoms * per_process
        network = 12 * 2e-6 + megabytes / 10e3
        print(f"  model, {system}, {per_process} atoms per process: {ghosts:.0f} ghosts, 12 messages, {megabytes:.2f} MB, compute "
              f"{1e3 * compute:.2f} ms, network {1e3 * network:.3f} ms, efficiency {compute / (compute + network):.3f}")


if __name__ == "__main__":
    main()
