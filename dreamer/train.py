"""Train an agent: ``python -m dreamer.train [--config PRESET ...] [key=value ...]``.

The command line, and `train` for Python. What a run does is in `dreamer.training.host` and `dreamer.training.device`.
"""

import os
import sys

if not __package__:  # Started as a file: Python would look for its own types.py and others beside this file.
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))

import contextlib

from dreamer.devices.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # Before the imports below, which take seconds.
    if not {"-h", "--help"}.intersection(sys.argv):
        with contextlib.suppress(OSError):  # Closed, or a file on a full disk.
            print("Dreamer starts: importing JAX takes a few seconds.", file=sys.stderr, flush=True)

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from dreamer import CallableModule, checkpoints, envs
from dreamer import config as configs
from dreamer.config import Config, ConfigError
from dreamer.config.population import members
from dreamer.devices.compile_cache import keep_compiled_programs, keep_names
from dreamer.devices.hosts import HostError
from dreamer.devices.member_axis import show_cores
from dreamer.envs.functions import CUSTOM
from dreamer.evaluate import make_env
from dreamer.logs.terminal import exit_status
from dreamer.replay import ReplayMemoryError
from dreamer.training.device import DeviceRun
from dreamer.training.directory import LogdirInUse, default_logdir
from dreamer.training.failure import TrainingFailed
from dreamer.training.host import HostRun
from dreamer.training.run import Result
from dreamer.training.stopping import SIGNALS

sys.modules[__name__].__class__ = CallableModule  # dreamer.train(...) calls the function below.

DEFAULT_PRESET = "cartpole"

PROFILE_UPDATES = 5
"""How many updates ``--profile`` records."""

FAILED = 3
"""Exit status of a run that ended because too many of its updates were skipped."""


def train(
    env: Any = None,
    config: Config | None = None,
    *,
    presets: Sequence[str] = (),
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Result:
    """Train an agent and return it.

    Args:
        env: makes the environment; any function without arguments that returns a Gymnasium environment, one with a
            parameter ``num_envs`` that returns that many in one object, or the name of a task. None: the one named by
            ``config.task``.
        config: a resolved config; None: built from presets and overrides, as on the command line.
        presets: preset names. Without any, ``cartpole``, whose sizes and rates suit small problems on a CPU; it also
            applies to ``env``.
        overrides: ``key=value`` strings.
        quiet: print nothing.

    Raises:
        ConfigError, EnvError, CheckpointError, ReplayMemoryError, LogdirInUse, HostError, TrainingFailed: see
            `dreamer.training.host.HostRun`.
    """
    if config is None:
        config = configs.load(presets or [DEFAULT_PRESET], overrides)
    make = None if env is None or isinstance(env, str) else envs.maker_of(env, config.env.kwargs)
    if env is not None:
        config = dataclasses.replace(config, task=env if isinstance(env, str) else envs.task_of(env))
    if config.env.python and make is not None:
        if config.task.startswith(CUSTOM):
            raise ConfigError(
                f"env.python={config.env.python} needs an environment that it can import by name: define the function "
                "or class at the top level of a module, and name it env='package.module:function'."
            )
        make = None
    if config.run.profile:
        keep_names()  # By which its table tells phases apart.
    if not config.logdir and not config.distributed:
        config = dataclasses.replace(config, logdir=default_logdir(config))
    if config.run.loop == "device":
        if make is not None:
            raise ConfigError("run.loop=device runs tasks by name only: leave out env, or use run.loop=host.")
        if config.distributed:
            raise ConfigError("run.loop=device runs on one host: leave out distributed.")
        show_cores(len(members(config)))
        return DeviceRun(config, quiet=quiet).train()
    if len(members(config)) > 1:
        raise ConfigError("A population needs run.loop=device, and with it a task written in JAX, such as jax_NAME.")
    return HostRun(config, make or make_env(config), quiet=quiet).train()


USAGE = """usage: python -m dreamer.train [--profile] [--config PRESET ...] [key=value ...]
       python -m dreamer.train [--profile] --resume LOGDIR [--env package.module:function] [key=value ...]

Trains an agent. Presets are applied left to right, then key=value overrides; without --config, the preset is
'{default}'. A preset may also be a file of yours: --config mine.yaml. The same command with the same logdir=DIR
resumes; --resume LOGDIR takes the config saved there, and --env names the environment of a run trained from Python.
--profile records a few updates, prints where their time went, and leaves a trace (docs/profiling.md).

presets:
{presets}

config keys, with type, default, unit and meaning:
{keys}"""


def parse(argv: Sequence[str]) -> Config | None:
    """Config from the command line; None if it asks for help.

    Raises:
        ConfigError: an option, preset, key or value is wrong.
    """
    names: list[str] = []
    overrides: list[str] = []
    resume = ""
    env = ""
    reading = ""
    for number, word in enumerate(argv):
        if word in ("-h", "--help"):
            return None
        if word in ("--config", "--resume") or (word == "--env" and "--resume" in argv):
            reading = word
        elif word == "--profile":
            overrides.append(f"run.profile={PROFILE_UPDATES}")
        elif word.startswith("-"):
            raise _unknown_option(word, argv[number + 1 : number + 2])
        elif "=" in word:
            overrides.append(word)
        elif reading == "--config":
            names.append(word)
        elif reading == "--resume" and not resume:
            resume = word
        elif reading == "--env" and not env:
            env = word
        else:
            raise ConfigError(f"'{word}' is not of the form key=value. Name presets after --config.")
    if not resume:
        return configs.load(names or [DEFAULT_PRESET], overrides)
    if names:
        raise ConfigError("--resume takes the config saved in the log directory; leave out --config.")
    saved = configs.to_dict(configs.load_yaml(pathlib.Path(resume) / "config.yaml"))
    named = {"task": env} if env else {}
    return configs.override(configs.from_dict({**saved, "logdir": resume, **named}), overrides)


def _unknown_option(word: str, following: Sequence[str]) -> ConfigError:
    """The error about an option of another program, which says how the same is written here."""
    name, equals, value = word.partition("=")
    keys = configs.nearest_keys(name)
    if keys:
        key = keys[0]
        value = value if equals else next((text for text in following if not text.startswith("-")), "VALUE")
        near = envs.nearest(value) if key == "task" and envs.split(value) == ("", value) and ":" not in value else []
        here = f" Write {key}={near[0] if near else value}: config keys are given as key=value."
    else:
        here = " Did you mean '--config'?" if name in ("--configs", "--preset", "--cfg", "-c") else ""
    return ConfigError(f"There is no option '{name}'.{here} The options are --config, --resume, --profile and --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status: 0 done, 2 an error with a message, 3 too many updates were skipped, 75 saved because of
        SIGTERM ("try again later"), 130 saved because of SIGINT.
    """
    if argv is None:
        keep_compiled_programs()
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        if config is None:
            presets = "\n".join(f"  {name:<18} {what}" for name, what in configs.presets().items())
            print(USAGE.format(default=DEFAULT_PRESET, presets=presets, keys=configs.reference()))
            return 0
        result = train(config=config)
    except (
        ConfigError,
        LogdirInUse,
        ReplayMemoryError,
        checkpoints.CheckpointError,
        envs.EnvError,
        HostError,
    ) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except TrainingFailed as error:
        print(f"Error: {error}", file=sys.stderr)
        return FAILED
    # What is no signal is a failure of another host, which has reported it.
    return SIGNALS.get(result.ended, 2) if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
