"""The compiled half; use the functions and classes of ``scorefield`` instead."""

from collections.abc import Callable
from typing import Any

from numpy import float64
from numpy.typing import NDArray

Array = NDArray[float64]

__version__: str

class Error(RuntimeError):
    """An evaluation or a run went wrong; the message says where and what to do."""

class Model:
    def __new__(cls, spec: str) -> Model: ...
    def describe(self) -> str: ...
    def atoms(self) -> tuple[list[int] | None, list[float] | None, list[float] | None, list[float] | None]: ...
    def set_types(self, types: list[int]) -> None: ...
    def evaluate(
        self,
        positions: Array,
        cells: Array | None,
        forces: Array | None,
        energy: Array | None,
        virial: Array | None,
        atom_energy: Array | None,
        energy_deviation: Array | None,
        force_deviation: Array | None,
    ) -> None: ...

class Dynamics:
    def __new__(
        cls,
        model: Model,
        positions: Array,
        cells: Array | None,
        velocities: Array | None,
        integrator: str,
        dt: str,
        friction: str,
        temperature: str,
        seed: int,
    ) -> Dynamics: ...
    def run(self, steps: int) -> None: ...
    def step(self) -> int: ...
    def read(self, positions: Array, velocities: Array, potential: Array, kinetic: Array, temperature: Array) -> None: ...

def relax(
    model: Model,
    positions: Array,
    cells: Array | None,
    relaxed: Array,
    method: str,
    fmax: str | None,
    max_steps: int,
    progress: Callable[[int, int], Any] | None,
) -> list[tuple[float | None, float, int, str]]: ...
def sample(
    file: str,
    n: int,
    seed: int,
    sampler: str,
    steps: int,
    denoise: bool,
    dtype: str,
    threads: int,
    progress: Callable[[int, int], Any] | None,
) -> tuple[list[float], int]: ...
