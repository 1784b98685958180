"""Paths of ASE's minimisers down Lennard-Jones clusters, step by step.

Two starts: LJ7, a pentagonal bipyramid in reduced units (read by ASE as eV
and Å), and LJ13, an icosahedron with argon's parameters.  Both are displaced
by a sine of the coordinate's number, so nothing here is random.  For each,
``FIRE2`` and ``LBFGS`` run with ASE's default parameters; written are

* ``epsilon_eV``, ``sigma_A`` and ``start_A``, which define the problem;
* per method ``positions_A``: the coordinates after each of the first 30
  iterations, ``[30, 3 N]``;
* per method ``iterations`` until the largest force is below ``fmax_eV_A``,
  ``evaluations`` of the forces until then, and the ``energy_eV`` reached.

Each also has the counts of ``BFGS``, without a path.

    python data/scripts/make_relax_references.py [--out tests/data/relax/ase.json]

Numbers are written with as many digits as reading them back exactly needs.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import BFGS, FIRE2, LBFGS

STEPS = 30
FMAX = 1e-4  # eV/Å
ARGON = (0.0103245, 3.405)  # eV, Å


class Pairs(Calculator):
    """Lennard-Jones forces between all pairs, without a cut-off."""

    implemented_properties = ["energy", "free_energy", "forces"]

    def __init__(self, epsilon, sigma):
        super().__init__()
        self.epsilon, self.sigma, self.evaluations = epsilon, sigma, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.evaluations += 1
        delta = self.atoms.positions[:, None] - self.atoms.positions[None]
        square = (delta**2).sum(-1)
        np.fill_diagonal(square, np.inf)
        attraction = (self.sigma**2 / square) ** 3
        slope = 24 * self.epsilon * (2 * attraction**2 - attraction) / square
        energy = 2 * self.epsilon * (attraction**2 - attraction).sum()
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": (slope[..., None] * delta).sum(1),
        }


def bipyramid():
    """Seven points: a pentagon and the two points above and below its centre."""
    angle = 2 * np.pi * np.arange(5) / 5
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1) * 0.95
    return np.vstack([ring, [[0, 0, 0.57], [0, 0, -0.57]]])


def icosahedron():
    """Thirteen points: the centre and the corners at distance 1."""
    golden = (1 + 5**0.5) / 2
    corners = np.array([(0, s, t * golden) for s in (1, -1) for t in (1, -1)])
    corners = np.vstack([corners, corners[:, [2, 0, 1]], corners[:, [1, 2, 0]]])
    return np.vstack([np.zeros((1, 3)), corners / np.linalg.norm(corners[0])])


def displaced(points, amplitude):
    wave = np.sin(1.7 * np.arange(points.size) + 0.3).reshape(points.shape)
    return points + amplitude * wave


def path(method, start, epsilon, sigma):
    """Coordinates after each of the first ``STEPS`` iterations."""
    atoms = Atoms("Ar%d" % len(start), positions=start)
    atoms.calc = Pairs(epsilon, sigma)
    optimiser = method(atoms, logfile=None)
    positions = []
    for _ in optimiser.irun(fmax=0, steps=STEPS):
        if optimiser.nsteps > 0:
            positions.append(atoms.positions.ravel().tolist())
    assert len(positions) == STEPS
    return positions


def count(method, start, epsilon, sigma):
    """Cost and result of a whole minimisation."""
    atoms = Atoms("Ar%d" % len(start), positions=start)
    atoms.calc = Pairs(epsilon, sigma)
    optimiser = method(atoms, logfile=None)
    assert optimiser.run(fmax=FMAX, steps=5000)
    return {
        "iterations": optimiser.nsteps,
        "evaluations": atoms.calc.evaluations,
        "energy_eV": float(atoms.get_potential_energy()),
    }


def main():
    default = Path(__file__).resolve().parents[2] / "tests/data/relax/ase.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default, help="output file")
    out = parser.parse_args().out

    epsilon, sigma = ARGON
    cases = {
        "LJ7": (1.0, 1.0, displaced(1.15 * bipyramid(), 0.2)),
        "LJ13": (epsilon, sigma, displaced(icosahedron(), 0.1) * sigma * 1.1),
    }
    document = {"fmax_eV_A": FMAX, "cases": {}}
    for name, (epsilon, sigma, start) in cases.items():
        case = {"epsilon_eV": epsilon, "sigma_A": sigma, "start_A": start.ravel().tolist()}
        for method in (FIRE2, LBFGS, BFGS):
            case[method.__name__.lower()] = result = count(method, start, epsilon, sigma)
            print(name, method.__name__, result)
            if method is not BFGS:
                result["positions_A"] = path(method, start, epsilon, sigma)
        document["cases"][name] = case
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, separators=(",", ":")).replace("],[", "],\n[").replace(',"', ',\n"') + "\n")


if __name__ == "__main__":
    main()
