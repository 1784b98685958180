"""Safetensors with the metadata of ANI models, written without NumPy or PyTorch."""

import json
import struct


def metadata(name, symmetry, elements, numbers, self_energies, source, licence, command):
    """Metadata of an energy model in Å and hartree, as the program reads them."""
    parameters = {
        **symmetry,
        "elements": elements,
        "self_energies_Ha": self_energies,
        "activation": "celu(0.1)",
        "length_unit": "Angstrom",
        "energy_unit": "Hartree",
        "source": source,
        "licence": licence,
    }
    return {
        "scorefield": "1",
        "architecture": name,
        "parameters": json.dumps(parameters),
        "prediction": "energy",
        "units": "si",
        "ensemble": "potential",
        "scale": "10",  # Å per nm
        "types": json.dumps([numbers[e] for e in elements]),
        "command": command,
        "seed": "0",
    }


def write(path, meta, tensors):
    """``tensors``: name -> (shape, little-endian f32 bytes)."""
    header, start = {"__metadata__": meta}, 0
    for name in sorted(tensors):
        shape, data = tensors[name]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for name in sorted(tensors):
            out.write(tensors[name][1])
