"""Pack beads of a reference and of samples for the report of the built-in model.

    python data/scripts/pack_beads.py --reference beads/reference.dcd --samples samples.dcd \
        --chains 20 --frames 10000 --out data/models/alanine-dipeptide/frames.safetensors

Both files hold the same beads (DCD, Å).  Frames are taken at equal distances,
centred, and stored as 16-bit integers of 0.001 Å in two tensors
`[frames, beads, 3]`; the reference's chains follow one another.
"""

import argparse
import json
import struct

import numpy as np
from mdtraj.formats import DCDTrajectoryFile


def load(path, frames):
    x = np.asarray(DCDTrajectoryFile(path).read()[0], float)
    x = x[:: len(x) // frames][:frames]
    x -= x.mean(1, keepdims=True)
    whole = np.rint(1000 * x)
    assert np.abs(whole).max() < 32767, f"{path}: beads reach too far for 16 bits"
    return whole.astype("<i2")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", required=True)
    parser.add_argument("--samples", required=True)
    parser.add_argument("--chains", type=int, required=True, help="independent parts of the reference, of equal length")
    parser.add_argument("--frames", type=int, default=10000)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    tensors = {name: load(getattr(arguments, name), arguments.frames) for name in ("reference", "samples")}
    header, data = {"__metadata__": {"unit": "0.001 A", "chains": str(arguments.chains)}}, b""
    for name, x in tensors.items():
        raw = x.tobytes()
        header[name] = {"dtype": "I16", "shape": list(x.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(arguments.out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


main()
