"""Convert a published ANI model to one safetensors file.

The models are in https://github.com/aiqm/ani-model-zoo (MIT licence):

    git clone https://github.com/aiqm/ani-model-zoo
    python data/scripts/convert_ani.py ani-model-zoo/resources/ani-2x_8x ani2x.safetensors
    python data/scripts/convert_ani.py ani-model-zoo/resources/ani-1ccx_8x ani1ccx.safetensors
    python data/scripts/convert_ani.py ani-model-zoo/resources/ani-2x_8x ani2x-hcnof.safetensors --elements H,C,N,O,F

A model directory holds ``*.params`` (symmetry functions), ``sae_linfit.dat`` (self energies) and, for each member,
``train{0..}/networks/ANN-{element}.nnf`` with one file of weights and one of biases per layer.  The result has tensors
``{element}.{layer}.weight`` [members, outputs, inputs] and ``.bias`` [members, outputs].  ``--elements`` leaves others out,
with their columns of the first layer; for molecules without them the model is the same.

Needs Python's standard library alone.
"""

import argparse
import bz2
import re
import sys
from pathlib import Path

import ani_files

NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "S": 16, "F": 9, "Cl": 17}
NAMES = {"ani-2x_8x": "ani2x", "ani-1x_8x": "ani1x", "ani-1ccx_8x": "ani1ccx"}
CELU, IDENTITY = 9, 6


def fail(message):
    sys.exit(f"convert_ani: {message}")


def only(directory, pattern):
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        fail(f"{directory} has {len(found)} files {pattern}; one is needed. Is it a model of ani-model-zoo?")
    return found[0]


def read_symmetry(path):
    """Parameters of the symmetry functions and the elements in the model's order."""
    values = dict(re.findall(r"^(\w+)\s*=\s*(.+?)\s*$", path.read_text(), re.MULTILINE))
    missing = {"Rcr", "Rca", "EtaR", "ShfR", "Zeta", "ShfZ", "EtaA", "ShfA", "Atyp"} - values.keys()
    if missing:
        fail(f"{path} lacks {', '.join(sorted(missing))}")
    items = {key: value.strip("[]").split(",") for key, value in values.items()}
    symmetry = {key: [float(x) for x in items[key]] for key in ("ShfR", "ShfZ", "ShfA")}
    for key in ("Rcr", "Rca", "EtaR", "Zeta", "EtaA"):
        if len(items[key]) != 1:
            fail(f"{path}: {key} has {len(items[key])} values; only one is understood")
        symmetry[key] = float(items[key][0])
    return symmetry, [e.strip() for e in items["Atyp"]]


def read_self_energies(path, elements):
    found = dict(re.findall(r"^(\w+),\d+\s*=\s*(\S+)\s*$", path.read_text(), re.MULTILINE))
    missing = [e for e in elements if e not in found]
    if missing:
        fail(f"{path} lacks {', '.join(missing)}")
    return [float(found[e]) for e in elements]


def read_network(path):
    """Layers as (outputs, inputs, weights, biases), numbers as little-endian f32 bytes."""
    data = path.read_bytes()
    start = data.find(b"BZh")
    if start < 0:
        fail(f"{path} holds no bzip2 stream")
    text = bz2.decompress(data[start:]).decode("ascii", "replace")
    layers = []
    for body in re.findall(r"layer \[(.*?)\n\]", text, re.DOTALL):
        value = dict(re.findall(r"(\w+)=(.+?);", body))
        outputs, inputs = int(value["nodes"]), int(value["blocksize"])
        arrays = []
        for key, size in (("weights", outputs * inputs), ("biases", outputs)):
            name, length = re.fullmatch(r"FILE:(.+)\[(\d+)\]", value[key]).groups()
            array = (path.parent / Path(name).name).read_bytes()
            if int(length) != size or len(array) != 4 * size:
                fail(f"{path}: {name} has {len(array)} bytes; {4 * size} are needed")
            arrays.append(array)
        layers.append((outputs, inputs, int(value["activation"]), *arrays))
    activations = [layer[2] for layer in layers]
    if len(layers) < 2 or activations != [CELU] * (len(layers) - 1) + [IDENTITY]:
        fail(f"{path}: activations {activations}; only CELU, and none after the last layer, are understood")
    return [(outputs, inputs, weights, biases) for outputs, inputs, _, weights, biases in layers]


def columns(symmetry, elements, kept):
    """Ranges of the features that concern ``kept`` alone: radial, then pairs in upper-triangular order."""
    radial = len(symmetry["ShfR"])
    angular = len(symmetry["ShfA"]) * len(symmetry["ShfZ"])
    ranges, start = [], 0
    for e in elements:
        ranges += [(start, start + radial)] if e in kept else []
        start += radial
    for i, a in enumerate(elements):
        for b in elements[i:]:
            ranges += [(start, start + angular)] if a in kept and b in kept else []
            start += angular
    return ranges, start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a directory such as ani-model-zoo/resources/ani-2x_8x")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    parser.add_argument("--elements", help="elements to keep, for example H,C,N,O,F; by default all")
    parser.add_argument("--name", help="ani2x, ani1x or ani1ccx; by default from the directory's name")
    args = parser.parse_args()
    if not args.model.is_dir():
        fail(f"{args.model} is no directory; clone https://github.com/aiqm/ani-model-zoo and give one of its resources/ani-*_8x")
    name = args.name or NAMES.get(args.model.resolve().name)
    if name not in NAMES.values():
        fail(f"the directory's name does not say which model it is; add --name {' or '.join(NAMES.values())}")

    symmetry, elements = read_symmetry(only(args.model, "*.params"))
    kept = args.elements.split(",") if args.elements else elements
    unknown = [e for e in kept if e not in elements or e not in NUMBERS]
    if unknown:
        fail(f"the model has no {', '.join(unknown)}; its elements are {', '.join(elements)}")
    kept = [e for e in elements if e in kept]
    ranges, features = columns(symmetry, elements, kept)
    members = sorted(args.model.glob("train[0-9]*"), key=lambda d: int(d.name.removeprefix("train")))
    if not members:
        fail(f"{args.model} has no train0, train1, …")

    tensors = {}
    for e in kept:
        networks = [read_network(d / "networks" / f"ANN-{e}.nnf") for d in members]
        for l, (outputs, inputs, *_) in enumerate(networks[0]):
            if any((n[l][0], n[l][1]) != (outputs, inputs) for n in networks):
                fail(f"layer {l} of {e} differs in shape between members")
            if l == 0 and inputs != features:
                fail(f"{e} has {inputs} inputs, but the symmetry functions give {features}")
            weights = b"".join(n[l][2] for n in networks)
            if l == 0 and kept != elements:
                row = 4 * inputs
                rows = range(0, len(weights), row)
                weights = b"".join(weights[r + 4 * a : r + 4 * b] for r in rows for a, b in ranges)
                inputs = sum(b - a for a, b in ranges)
            tensors[f"{e}.{l}.weight"] = ([len(members), outputs, inputs], weights)
            tensors[f"{e}.{l}.bias"] = ([len(members), outputs], b"".join(n[l][3] for n in networks))

    self_energies = read_self_energies(only(args.model, "sae_linfit.dat"), kept)
    source = f"https://github.com/aiqm/ani-model-zoo {args.model.resolve().name}"
    command = f"convert_ani.py {args.model.name}" + (f" --elements {','.join(kept)}" if args.elements else "")
    meta = ani_files.metadata(name, symmetry, kept, NUMBERS, self_energies, source, "MIT", command)
    ani_files.write(args.output, meta, tensors)
    print(f"{args.output}: {name}, {len(members)} members, elements {', '.join(kept)}")


if __name__ == "__main__":
    main()
