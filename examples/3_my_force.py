#!/usr/bin/env python3
"""A force of your own in any language: read structures from standard input, write forces to standard output.

    scorefield relax cluster.xyz --model "external:python3 examples/3_my_force.py" --out relaxed.xyz

Springs of 1 eV/Å² pull every pair of atoms towards 1.5 Å. Lengths are in Å and energies in eV, as the first line says.
"""
import json
import math
import sys

hello = dict(scorefield=1, name="springs", kind="physical", conservative=True, energy=True, length="A", energy_unit="eV")
print(json.dumps(hello), flush=True)
for line in sys.stdin:
    x = json.loads(line)["positions"]
    energy, forces = 0.0, [[0.0] * 3 for _ in x]
    for i in range(len(x)):
        for j in range(i):
            d = [a - b for a, b in zip(x[i], x[j])]
            r = math.sqrt(sum(c * c for c in d))
            energy += 0.5 * (r - 1.5) ** 2
            for k in range(3):
                f = -(r - 1.5) * d[k] / r
                forces[i][k] += f
                forces[j][k] -= f
    print(json.dumps({"energy": energy, "forces": forces}), flush=True)
