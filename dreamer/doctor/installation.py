"""Versions of the libraries, and which extras are installed."""

import importlib.metadata
import platform
from collections.abc import Iterator

from packaging.requirements import InvalidRequirement, Requirement

from dreamer.doctor.findings import MachineFinding

SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gymnasium", "mujoco")
"""Libraries whose versions are worth a line."""

EXTRAS = {
    "cuda": (("jax-cuda13-plugin", "jax-cuda12-plugin"), "training on NVIDIA GPUs"),
    "tpu": (("libtpu",), "training on TPUs"),
    "atari": (("ale-py",), "Atari games"),
    "box2d": (("box2d",), "LunarLander and its relatives"),
    "crafter": (("crafter",), "Crafter"),
    "craftax": (("craftax",), "Craftax, in JAX"),
    "gymnax": (("gymnax",), "gymnax's environments, in JAX"),
    "minigrid": (("minigrid",), "MiniGrid and BabyAI"),
    "memory": (("memory-maze",), "Memory Maze"),
    "envpool": (("envpool",), "EnvPool, many environments in one object"),
    "playground": (("playground",), "MuJoCo Playground, in JAX"),
    "search": (("mctx",), "tree search"),
    "sweep": (("optuna",), "sweeps with search: optuna"),
    "ray": (("ray",), "sweeps on a cluster"),
    "dev": (("pytest",), "working on the code"),
}
"""For each extra, the distributions of which it needs one, and what it is for."""


def version(name: str) -> str:
    """Version of an installed distribution; empty if it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def requirements(name: str = "dreamer") -> list[str]:
    """Requirements that a distribution declares; empty if it is not installed."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def versions() -> Iterator[MachineFinding]:
    """Python and the libraries, and whether their versions are those that Dreamer needs."""
    found = {name: version(name) for name in ("dreamer", *SHOWN)}
    shown = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    where = f"Python {platform.python_version()} on {platform.platform(terse=True)}"
    yield MachineFinding("ok", "versions", f"{where}; {shown}.", {"python": platform.python_version(), **found})
    if not found["dreamer"]:
        text = (
            "Dreamer is not installed, only its files are here: run pip install -c constraints.txt -e . next to them."
        )
        yield MachineFinding("problem", "versions", text)
    wrong = []
    for line in requirements():
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue
        # `extras` reports those of extras.
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        installed = version(needed.name)
        if not installed:
            wrong.append(f"{needed.name} is missing")
        elif not needed.specifier.contains(installed, prereleases=True):
            wrong.append(f"{needed.name} is {installed}, expected {needed.specifier}")
    if wrong:
        text = f"{'; '.join(wrong)}: install what Dreamer needs with pip install -c constraints.txt -e ."
        yield MachineFinding("problem", "versions", text, {"wrong": wrong})
    if found["jax"] and found["jaxlib"] and found["jax"] != found["jaxlib"]:
        text = f"jax is {found['jax']} and jaxlib {found['jaxlib']}, expected the same: pip install jax=={found['jax']}"
        yield MachineFinding("problem", "versions", f"{text} jaxlib=={found['jax']}.")


def extras() -> Iterator[MachineFinding]:
    """Which extras are installed, what they are for, and how to get the others."""
    missing = {}
    for name, (distributions, purpose) in EXTRAS.items():
        installed = {distribution: number for distribution in distributions if (number := version(distribution))}
        if installed:
            shown = ", ".join(f"{distribution} {number}" for distribution, number in installed.items())
            yield MachineFinding(
                "ok", "extras", f"{name}: {shown}, for {purpose}.", {"extra": name, "versions": installed}
            )
        else:
            missing[name] = purpose
    if missing:
        shown = ", ".join(f"{name} ({purpose})" for name, purpose in missing.items())
        text = f"Not installed: {shown}. If you need one: pip install -e '.[NAME]'."
        yield MachineFinding("note", "extras", text, {"missing": list(missing)})
    if version("pygame") and version("pygame-ce"):
        text = (
            "pygame and pygame-ce are both installed and overwrite each other's files: pip uninstall pygame "
            "pygame-ce, then pip install pygame-ce."
        )
        yield MachineFinding("problem", "extras", text)


__all__ = ["EXTRAS", "extras", "requirements", "version", "versions"]
