"""Relax molecules one by one with ASE and torchani, as relax.py asks.

    python relax_torchani.py MOLECULES.xyz WEIGHTS.safetensors --fmax 0.01 --threads 1

The networks are torchani's own classes with the weights of the file that
scorefield reads.  Prints one JSON object per molecule: its number of steps, the
seconds it took, whether it converged, and its energy in eV.  A first line has
the versions.
"""

import argparse
import json
import sys
import time
import warnings
from collections import OrderedDict

warnings.filterwarnings("ignore")

import ase.io
import ase.optimize
import numpy as np
import safetensors.torch
import torch
import torchani
from ase.calculators.calculator import Calculator, all_changes

HARTREE = 27.211386245988


class Settings:
    """What the header of the weights says."""

    def __init__(self, path):
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata()
        self.elements = header["elements"].split(",")
        self.members = int(header["members"])
        self.alpha = float(header["activation"].removeprefix("celu(").removesuffix(")"))
        self.self_energies = [float(x) for x in header["self_energies_Ha"].split(",")]
        self.numbers = {
            key: [float(x) for x in header[key].split(",")]
            for key in ("Rcr", "Rca", "EtaR", "ShfR", "EtaA", "Zeta", "ShfA", "ShfZ")
        }


def networks(settings, tensors, member, dtype):
    atomic = OrderedDict()
    for element in settings.elements:
        layers, k = [], 0
        while f"{element}.{k}.weight" in tensors:
            weight = tensors[f"{element}.{k}.weight"][member]
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data = weight.clone()
            linear.bias.data = tensors[f"{element}.{k}.bias"][member].clone()
            if layers:
                layers.append(torch.nn.CELU(settings.alpha))
            layers.append(linear)
            k += 1
        atomic[element] = torch.nn.Sequential(*layers)
    return torchani.ANIModel(atomic)


def build(path, dtype):
    settings = Settings(path)
    tensors = safetensors.torch.load_file(path)
    one = {key: settings.numbers[key][0] for key in ("Rcr", "Rca")}
    many = {
        key: torch.tensor(settings.numbers[key]) for key in ("EtaR", "ShfR", "EtaA", "Zeta", "ShfA", "ShfZ")
    }
    aev = torchani.AEVComputer(
        one["Rcr"], one["Rca"], many["EtaR"], many["ShfR"], many["EtaA"], many["Zeta"],
        many["ShfA"], many["ShfZ"], num_species=len(settings.elements),
    )
    ensemble = torchani.nn.Ensemble(
        [networks(settings, tensors, m, dtype) for m in range(settings.members)]
    )
    shift = torchani.utils.EnergyShifter(settings.self_energies)
    return settings, torch.nn.Sequential(aev, ensemble, shift).to(dtype)


class TorchAni(Calculator):
    implemented_properties = ["energy", "forces"]

    def __init__(self, settings, model, dtype):
        super().__init__()
        self.settings, self.model, self.dtype = settings, model, dtype

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        species = torch.tensor(
            [[self.settings.elements.index(s) for s in self.atoms.get_chemical_symbols()]]
        )
        x = torch.tensor(self.atoms.positions[None], dtype=self.dtype, requires_grad=True)
        energy = self.model((species, x)).energies.sum() * HARTREE
        forces = -torch.autograd.grad(energy, x)[0][0]
        self.results = {"energy": float(energy.detach()), "forces": forces.double().numpy()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecules")
    parser.add_argument("weights")
    parser.add_argument("--fmax", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--double", action="store_true", help="double precision")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = torch.float64 if arguments.double else torch.float32
    settings, model = build(arguments.weights, dtype)
    molecules = ase.io.read(arguments.molecules, index=":")
    print(json.dumps({"torch": torch.__version__, "torchani": torchani.__version__, "ase": ase.__version__}))
    # What is only slow the first time is not counted.
    warm = molecules[0].copy()
    warm.calc = TorchAni(settings, model, dtype)
    warm.get_forces()
    for atoms in molecules:
        atoms.calc = TorchAni(settings, model, dtype)
        start = time.perf_counter()
        optimiser = ase.optimize.LBFGS(atoms, logfile=None)
        converged = optimiser.run(fmax=arguments.fmax, steps=arguments.steps)
        seconds = time.perf_counter() - start
        row = {
            "steps": optimiser.get_number_of_steps(),
            "seconds": seconds,
            "converged": bool(converged),
            "energy": float(np.float64(atoms.get_potential_energy())),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
