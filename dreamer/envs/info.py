"""What environments say in ``info`` of an episode: whether it succeeded, what it cost, and numbers to log.

Environments know nothing of this project, so a key may mean something else. What is not understood is ignored, and said
once; it never ends a run.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SUCCESS = "episode/success"
"""Whether the last step of an episode was a success, 0 or 1."""

SUCCESS_ANY = "episode/success_any"
"""Whether any step of an episode was a success, 0 or 1."""

COST = "episode/cost"
"""Sum of the costs of all steps of an episode."""

OUTCOMES = (SUCCESS, SUCCESS_ANY, COST)
"""Names under which the outcome of an episode stands among the numbers that its environment logs."""

_SUCCESS_KEYS = ("is_success", "success")
"""Keys of ``info``: of Gymnasium-Robotics and panda-gym, and of Meta-World and OGBench."""

KEYS = (*_SUCCESS_KEYS, "cost", "log", "env_steps")
"""Keys of ``info`` that are used."""

_DEEPEST = 4
"""Levels of dictionaries in ``info["log"]``."""


class InfoReader:
    """Reads ``info`` of every step of an environment, episode after episode.

    Args:
        note: called with a key and a sentence about what is ignored.
    """

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._note = note
        # Many environments report success only where there is one: after the first, silence means failure.
        self._reports_success = False
        self._succeeded = False
        self._cost: float | None = None

    def begin(self) -> None:
        """An episode begins."""
        self._succeeded = False
        self._cost = None

    def read(self, info: dict[str, Any]) -> None:
        """Take note of a step."""
        if "is_success" in info or "success" in info:
            self._succeeded |= self._success(info)
        if "cost" in info:
            cost = as_number(info["cost"])
            if cost is None:
                self._ignore("cost", info["cost"], "a number")
            else:
                self._cost = (self._cost or 0.0) + cost

    def log(self, info: dict[str, Any]) -> dict[str, float]:
        """Numbers about the episode that ended with this ``info``: its log by name, and its outcome by `OUTCOMES`."""
        numbers: dict[str, float] = {}
        log = info.get("log")
        if isinstance(log, dict):
            for name, value in _flatten(log, "", _DEEPEST):
                if (number := as_number(value)) is not None:
                    numbers[name] = number
                else:
                    self._ignore("log", value, "a number", name)
        elif log is not None:
            self._ignore("log", log, "a dict of numbers by name")
        last = self._success(info)
        if self._reports_success:
            numbers[SUCCESS] = float(last)
            numbers[SUCCESS_ANY] = float(self._succeeded)
        if self._cost is not None:
            numbers[COST] = self._cost
        return numbers

    def state(self) -> dict[str, Any]:
        """What has been read of the present episode, as plain data."""
        return {"reports_success": self._reports_success, "succeeded": self._succeeded, "cost": self._cost}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._reports_success = state["reports_success"]
        self._succeeded = state["succeeded"]
        self._cost = state["cost"]

    def _success(self, info: dict[str, Any]) -> bool:
        """Whether a step was a success; a step that does not say so was none."""
        for key in _SUCCESS_KEYS:
            if (value := info.get(key)) is None:
                continue
            if (number := as_number(value)) in (0.0, 1.0):
                self._reports_success = True
                return number == 1.0
            self._ignore(key, value, "a bool, 0 or 1")
        return False

    def _ignore(self, key: str, value: Any, expected: str, name: str = "") -> None:
        inner = f"[{name!r}]" if name else ""
        self._note(f"info['{key}']", f"info['{key}']{inner} is {value!r:.80}, expected {expected}. It is ignored")


def as_number(value: Any) -> float | None:
    """A bool, a number, or an array of one number, as a float; None for anything else."""
    if isinstance(value, str | bytes | list | tuple):
        return None
    try:
        return float(np.asarray(value).item())
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor that has a gradient.
        return None


def _flatten(log: dict[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Values of nested dictionaries, by names joined with slashes."""
    for key, value in log.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth > 1:
            yield from _flatten(value, f"{name}/", depth - 1)
        else:
            yield name, value


__all__ = ["COST", "OUTCOMES", "SUCCESS", "SUCCESS_ANY", "InfoReader", "as_number"]
