"""What OpenMM-ML finds by its entry point; nobody else imports this."""

from __future__ import annotations

from typing import Any

from openmmml.mlpotential import MLPotential, MLPotentialImpl, MLPotentialImplFactory

from .openmm import force


class PotentialFactory(MLPotentialImplFactory):
    """OpenMM-ML's way to us, by the entry point ``openmmml.potentials``: ``MLPotential("scorefield", model=…)``, and
    ``MLPotential("scorefield:…")`` with the model in the name."""

    def __init__(self) -> None:
        if not isinstance(MLPotential._implFactories, _Factories):
            MLPotential._implFactories = _Factories(MLPotential._implFactories)

    def createImpl(self, name: str, **args: Any) -> Potential:
        """The potential called ``name``; called by OpenMM-ML."""
        _, colon, spec = name.partition(":")
        if colon:
            args["model"] = spec
        if "model" not in args:
            raise ValueError("which model? Write MLPotential('scorefield:…') or MLPotential('scorefield', model='…')")
        return Potential(**args)


class _Factories(dict):  # type: ignore[type-arg]
    """OpenMM-ML looks factories up by the whole name; ours is the one of every name that begins with ``scorefield:``."""

    def __missing__(self, name: str) -> PotentialFactory:
        if name.startswith("scorefield:"):
            return PotentialFactory()
        raise KeyError(name)


class Potential(MLPotentialImpl):
    """A model as OpenMM-ML sees it."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def addForces(self, topology: Any, system: Any, atoms: Any, forceGroup: int, **args: Any) -> None:
        """Adds the force; called by OpenMM-ML."""
        system.addForce(force(topology=topology, atoms=atoms, force_group=forceGroup, **{**self.options, **args}))
