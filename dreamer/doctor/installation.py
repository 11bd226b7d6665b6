"""Versions, and extras that are installed or not."""

import importlib.metadata
import platform
from collections.abc import Iterator

from packaging.requirements import InvalidRequirement, Requirement

from dreamer.doctor.findings import Finding

SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gymnasium", "mujoco")
"""Libraries whose versions are worth a line."""

EXTRAS = {
    "cuda": (("jax-cuda13-plugin", "jax-cuda12-plugin"), "training on NVIDIA GPUs"),
    "tpu": (("libtpu",), "training on TPUs"),
    "atari": (("ale-py",), "Atari games"),
    "crafter": (("crafter",), "Crafter"),
    "craftax": (("craftax",), "Craftax, in JAX"),
    "gymnax": (("gymnax",), "gymnax's environments, in JAX"),
    "minigrid": (("minigrid",), "MiniGrid and BabyAI"),
    "memory": (("memory-maze",), "Memory Maze"),
    "playground": (("playground",), "MuJoCo Playground, in JAX"),
    "sweep": (("optuna",), "sweeps with search: optuna"),
    "ray": (("ray",), "sweeps on a cluster"),
    "dev": (("pytest",), "working on the code"),
}
"""Distributions of every extra, one of which it needs, and what it is for."""


def version(name: str) -> str:
    """Version of an installed distribution; empty if it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def requirements(name: str = "dreamer") -> list[str]:
    """What a distribution says it needs; empty if it is not installed."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def versions() -> Iterator[Finding]:
    """Python, the libraries, and whether they are those that Dreamer needs."""
    found = {name: version(name) for name in ("dreamer", *SHOWN)}
    shown = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    where = f"Python {platform.python_version()} on {platform.platform(terse=True)}"
    yield Finding("ok", "versions", f"{where}; {shown}.", {"python": platform.python_version(), **found})
    if not found["dreamer"]:
        text = "Dreamer is not installed here, only its files are: run pip install -c constraints.txt -e . beside them."
        yield Finding("problem", "versions", text)
    wrong = []
    for line in requirements():
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue
        # Extras are looked at one by one below.
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        installed = version(needed.name)
        if not installed:
            wrong.append(f"{needed.name} is missing")
        elif not needed.specifier.contains(installed, prereleases=True):
            wrong.append(f"{needed.name} is {installed}, expected {needed.specifier}")
    if wrong:
        text = f"{'; '.join(wrong)}: install what Dreamer needs with pip install -c constraints.txt -e ."
        yield Finding("problem", "versions", text, {"wrong": wrong})
    if found["jax"] and found["jaxlib"] and found["jax"] != found["jaxlib"]:
        text = f"jax is {found['jax']} and jaxlib {found['jaxlib']}, expected the same: pip install jax=={found['jax']}"
        yield Finding("problem", "versions", f"{text} jaxlib=={found['jax']}.")


def extras() -> Iterator[Finding]:
    """Which extras are there, what for, and how to get the others."""
    missing = []
    for name, (distributions, purpose) in EXTRAS.items():
        there = {distribution: number for distribution in distributions if (number := version(distribution))}
        if there:
            shown = ", ".join(f"{distribution} {number}" for distribution, number in there.items())
            yield Finding("ok", "extras", f"{name}: {shown}, for {purpose}.", {"extra": name, "versions": there})
        else:
            missing.append(f"{name} ({purpose})")
    if missing:
        text = f"Not installed: {', '.join(missing)}. If you need one: pip install -e '.[NAME]'."
        yield Finding("note", "extras", text, {"missing": [entry.partition(" ")[0] for entry in missing]})
    if version("pygame") and version("pygame-ce"):
        text = (
            "pygame and pygame-ce are both installed, and write over each other's files: pip uninstall pygame "
            "pygame-ce, then pip install pygame-ce."
        )
        yield Finding("problem", "extras", text)


__all__ = ["EXTRAS", "extras", "requirements", "version", "versions"]
