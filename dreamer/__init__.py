"""Dreamer: learn a world model from experience, and behaviour inside it.

``train(env=make_env)`` trains, ``load(logdir)`` gives the trained agent, ``evaluate`` scores it, ``make_env(config)``
makes its environment; what they raise is here, too. Imports happen on first use, so that ``import dreamer`` is instant.
"""

import importlib
from types import ModuleType
from typing import Any

_HOMES = {
    "Agent": "agent",
    "Algorithm": "algorithms",
    "Batch": "types",
    "Behavior": "behaviors",
    "CheckpointError": "checkpoints",
    "Config": "config",
    "ConfigError": "config",
    "EnvError": "envs",
    "HostError": "devices.hosts",
    "LogdirInUse": "training.directory",
    "ReplayMemoryError": "replay",
    "TrainingFailed": "training.failure",
    "VideoError": "evaluate.video",
    "load_config": "config",
    "Planner": "planners",
    "Space": "types",
    "Trajectory": "types",
    "WorldModel": "world_models",
    "evaluate": "evaluate",
    "imagine": "world_models",
    "load": "evaluate",
    "make_env": "evaluate",
    "train": "train",
}


class CallableModule(ModuleType):
    """A module that can be called like its function of the same name.

    Once the module is imported, Python itself makes ``dreamer.train`` name it. So that ``dreamer.train()`` works before
    and after, the name always means the module, and the module is of this class.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamer' has no attribute '{name}'. It has: {', '.join(sorted(_HOMES))}.")
    module = importlib.import_module(f"dreamer.{_HOMES[name]}")
    if name == _HOMES[name]:
        return module
    return getattr(module, "load" if name == "load_config" else name)


__all__ = list(_HOMES)
