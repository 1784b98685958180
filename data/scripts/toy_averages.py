"""Boltzmann averages of two textbook potentials by numerical quadrature.

* A tilted double well in one dimension, V = h (x^2 - 1)^2 + t x, at kT = 1.
* The Mueller-Brown surface in two dimensions at several temperatures, with
  energies as in its usual parametrisation (no scaling).

Gauss-Legendre quadrature; each average is computed with two numbers of nodes
and the program stops if they differ.

    python data/scripts/toy_averages.py [--out tests/data/toy_averages.json]
"""

import argparse
import json
from pathlib import Path

import numpy as np

DOUBLE_WELLS = ((1.0, 0.0), (3.0, 0.0), (5.0, 0.0), (5.0, 0.5))  # (h, t)
MUELLER_BROWN_KT = (10.0, 15.0, 20.0, 30.0)
BOX = ((-5.0, 3.0), (-3.0, 5.0))

# Parameters of the four terms A exp(a dx^2 + b dx dy + c dy^2).
MUELLER_BROWN = {
    "A": (-200.0, -100.0, -170.0, 15.0),
    "a": (-1.0, -1.0, -6.5, 0.7),
    "b": (0.0, 0.0, 11.0, 0.6),
    "c": (-10.0, -10.0, -6.5, 0.7),
    "X": (1.0, 0.0, -0.5, -1.0),
    "Y": (0.0, 0.5, 1.5, 1.0),
}


def nodes(low, high, count):
    """Gauss-Legendre nodes and weights on [low, high]."""
    x, w = np.polynomial.legendre.leggauss(count)
    half = 0.5 * (high - low)
    return low + half * (x + 1.0), half * w


def double_well(h, t, count):
    """Averages of x, x^2, V and of the indicator of x < 0."""
    left, right = nodes(-5.0, 0.0, count), nodes(0.0, 5.0, count)
    x, w = np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])
    energy = h * (x**2 - 1.0) ** 2 + t * x
    weight = w * np.exp(-(energy - energy.min()))
    total = weight.sum()
    return {
        "x": float(weight @ x / total),
        "x2": float(weight @ x**2 / total),
        "energy": float(weight @ energy / total),
        "p_left": float(weight[x < 0.0].sum() / total),
    }


def mueller_brown(x, y):
    """Energy of the Mueller-Brown surface."""
    return sum(
        A * np.exp(a * (x - X) ** 2 + b * (x - X) * (y - Y) + c * (y - Y) ** 2)
        for A, a, b, c, X, Y in zip(*MUELLER_BROWN.values())
    )


def surface(kt, count):
    """Averages of x, y and V, and the free-energy scale -kT ln Z."""
    (x, wx), (y, wy) = (nodes(*side, count) for side in BOX)
    energy = mueller_brown(x[:, None], y[None, :])
    lowest = energy.min()
    weight = np.outer(wx, wy) * np.exp(-(energy - lowest) / kt)
    total = weight.sum()
    return {
        "x": float(weight.sum(axis=1) @ x / total),
        "y": float(weight.sum(axis=0) @ y / total),
        "energy": float((weight * energy).sum() / total),
        "free_energy": float(lowest - kt * np.log(total)),
    }


def converged(function, *arguments, counts, tolerance=1e-10):
    """The average with the larger number of nodes, if both agree."""
    coarse, fine = (function(*arguments, count) for count in counts)
    for key, value in fine.items():
        if abs(value - coarse[key]) > tolerance * max(1.0, abs(value)):
            raise SystemExit(f"{function.__name__}{arguments}: {key} has not converged")
    return fine


def main():
    default = Path(__file__).resolve().parents[2] / "tests" / "data" / "toy_averages.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default, help="output file")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "double_well": [
            {"h": h, "t": t, "kT": 1.0, **converged(double_well, h, t, counts=(200, 320))}
            for h, t in DOUBLE_WELLS
        ],
        "mueller_brown": {
            "parameters": MUELLER_BROWN,
            "box": BOX,
            "averages": [
                {"kT": kt, **converged(surface, kt, counts=(400, 640))}
                for kt in MUELLER_BROWN_KT
            ],
        },
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
