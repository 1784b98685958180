"""A small ANI model with random weights and its energies and forces on a few molecules.

The reference is written from the equations alone, in plain complex arithmetic: angles by arc cosine, powers by `**`,
sums in loops.  Forces are derivatives by complex step, ``Im E(x + i h)/h`` with ``h = 1e-30``, exact to rounding.  The model
has three members and a network of another depth and width for each element, none a multiple of a vector's length.

    python data/scripts/make_ani_fixture.py [--out tests/data/ani]

Needs Python's standard library alone; takes a second.
"""

import argparse
import cmath
import json
import math
import random
import struct
from pathlib import Path

import ani_files

ELEMENTS = ["H", "C", "O"]
NUMBERS = {"H": 1, "C": 6, "O": 8}
SELF_ENERGIES = [-0.6, -38.1, -75.2]
HIDDEN = {"H": [10, 6], "C": [18, 9, 7], "O": [5]}
MEMBERS = 3
SYMMETRY = {
    "Rcr": 4.6,
    "Rca": 3.1,
    "EtaR": 16.0,
    "ShfR": [0.75 + 0.25 * k for k in range(16)],
    "Zeta": 8.0,
    "ShfZ": [0.375 + 0.75 * q for q in range(4)],
    "EtaA": 6.0,
    "ShfA": [0.75 + 0.5 * p for p in range(4)],
}
MOLECULES = {
    "methanol": [
        ("C", -0.047, 0.664, 0.010),
        ("O", -0.061, -0.758, -0.020),
        ("H", -1.092, 0.970, 0.030),
        ("H", 0.438, 1.071, 0.889),
        ("H", 0.441, 1.062, -0.893),
        ("H", 0.869, -1.060, 0.120),
    ],
    "formic acid, distorted": [
        ("O", -1.040, -0.410, 0.080),
        ("C", 0.020, 0.440, -0.110),
        ("O", 1.170, 0.010, 0.050),
        ("H", -0.280, 1.510, 0.200),
        ("H", -0.710, -1.280, -0.160),
    ],
    "water": [("O", 0.0, 0.0, 0.119), ("H", 0.0, 0.763, -0.477), ("H", 0.0, -0.763, -0.477)],
    "hydrogen": [("H", 0.3, -0.1, 0.2), ("H", 0.8, 0.4, 0.1)],
    "carbon": [("C", 1.0, 2.0, 3.0)],
}


def single(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def features(atoms, i):
    """Symmetry functions of atom ``i``; coordinates may be complex, conditions are on real parts."""
    s, n = SYMMETRY, len(ELEMENTS)
    angular = len(s["ShfA"]) * len(s["ShfZ"])
    radial = len(s["ShfR"])
    result = [0j] * (n * radial + n * (n + 1) // 2 * angular)
    pairs = {p: k for k, p in enumerate((a, b) for a in range(n) for b in range(a, n))}

    def cutoff(r, rc):
        return 0.5 * cmath.cos(math.pi * r / rc) + 0.5

    near = []
    for j, (element, *x) in enumerate(atoms):
        d = [a - b for a, b in zip(x, atoms[i][1:])]
        r = cmath.sqrt(sum(c * c for c in d))
        if j == i or r.real > s["Rcr"]:
            continue
        e = ELEMENTS.index(element)
        near.append((e, d, r))
        for k, shift in enumerate(s["ShfR"]):
            result[e * radial + k] += 0.25 * cmath.exp(-s["EtaR"] * (r - shift) ** 2) * cutoff(r, s["Rcr"])
    near = [m for m in near if m[2].real <= s["Rca"]]
    for a, (ea, da, ra) in enumerate(near):
        for eb, db, rb in near[a + 1 :]:
            angle = cmath.acos(0.95 * sum(p * q for p, q in zip(da, db)) / (ra * rb))
            start = n * radial + pairs[min(ea, eb), max(ea, eb)] * angular
            scale = 2 * cutoff(ra, s["Rca"]) * cutoff(rb, s["Rca"])
            for p, shift in enumerate(s["ShfA"]):
                distance = cmath.exp(-s["EtaA"] * ((ra + rb) / 2 - shift) ** 2)
                for q, turn in enumerate(s["ShfZ"]):
                    value = scale * ((1 + cmath.cos(angle - turn)) / 2) ** s["Zeta"] * distance
                    result[start + p * len(s["ShfZ"]) + q] += value
    return result


def celu(x):
    return x if x.real > 0 else 0.1 * (cmath.exp(x / 0.1) - 1)


def energies(atoms, weights):
    """Energy of each member in hartree."""
    totals = [0j] * MEMBERS
    for i, (element, *_) in enumerate(atoms):
        aev = features(atoms, i)
        for m in range(MEMBERS):
            h = aev
            layers = weights[element]
            for l, (weight, bias) in enumerate(layers):
                h = [b + sum(w * x for w, x in zip(row, h)) for row, b in zip(weight[m], bias[m])]
                if l + 1 < len(layers):
                    h = [celu(x) for x in h]
            totals[m] += h[0] + SELF_ENERGIES[ELEMENTS.index(element)]
    return totals


def forces(atoms, weights):
    """Forces [members][atoms][3] in hartree/Å."""
    step = 1e-30
    result = [[[0.0] * 3 for _ in atoms] for _ in range(MEMBERS)]
    for i in range(len(atoms)):
        for a in range(3):
            moved = [list(atom) for atom in atoms]
            moved[i][1 + a] += 1j * step
            for m, e in enumerate(energies(moved, weights)):
                result[m][i][a] = -e.imag / step
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tests/data/ani"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    rng = random.Random(20)
    inputs = len(features([("H", 0, 0, 0)], 0))
    weights, tensors = {}, {}
    for e in ELEMENTS:
        weights[e] = []
        widths = [inputs, *HIDDEN[e], 1]
        for l, (i, o) in enumerate(zip(widths, widths[1:])):
            # Few features of a small molecule differ from zero: a wider first layer.
            spread = (4.0 if l == 0 else 1.5) / math.sqrt(i)
            weight = [[[single(rng.gauss(0, spread)) for _ in range(i)] for _ in range(o)] for _ in range(MEMBERS)]
            bias = [[single(rng.gauss(0, 0.1)) for _ in range(o)] for _ in range(MEMBERS)]
            weights[e].append((weight, bias))
            flat = [x for m in weight for row in m for x in row]
            tensors[f"{e}.{l}.weight"] = ([MEMBERS, o, i], struct.pack(f"<{len(flat)}f", *flat))
            flat = [x for m in bias for x in m]
            tensors[f"{e}.{l}.bias"] = ([MEMBERS, o], struct.pack(f"<{len(flat)}f", *flat))
    meta = ani_files.metadata(
        "ani-fixture", SYMMETRY, ELEMENTS, NUMBERS, SELF_ENERGIES, "random numbers", "MIT OR Apache-2.0", "make_ani_fixture.py"
    )
    ani_files.write(out / "fixture.safetensors", meta, tensors)

    cases = {}
    for name, atoms in MOLECULES.items():
        cases[name] = {
            "z": [NUMBERS[a[0]] for a in atoms],
            "pos_A": [list(a[1:]) for a in atoms],
            "member_energies_Ha": [e.real for e in energies(atoms, weights)],
            "member_forces_Ha_A": forces(atoms, weights),
        }
    (out / "fixture.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
