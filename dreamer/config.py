"""Configuration: names, types, defaults, units and help of every choice, and how presets and overrides are merged.

A config is a frozen dataclass, hashable, and complete: it alone reproduces a run. `load` starts from the defaults
below (the published DreamerV3), applies presets from ``configs/`` left to right, then ``key=value`` overrides. Unknown
keys and wrong types fail at once with the nearest valid name.
"""

import dataclasses
import difflib
import functools
import keyword
import math
import operator
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """A config that cannot be used; the message says what, got, expected and what to do."""


_ORDER = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def _field(default: Any, help: str, unit: str = "", **bounds: Any) -> Any:
    """A field of a config.

    Args:
        default: its default.
        help: one line that says what it is.
        unit: unit of the value.
        bounds: smallest and largest value, by the names in `_ORDER`; of every element of a tuple. Without a lower one,
            integers are at least 1, as they count something, and other numbers at least 0.
    """
    if not bounds.keys() & {"at_least", "above"}:
        bounds = {"at_least": 0 if isinstance(default, float) else 1, **bounds}
    metadata = {"help": help, "unit": unit, "bounds": bounds}
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DMCConfig:
    """DeepMind Control suite."""

    obs: Literal["proprio", "pixels", "both"] = _field("proprio", "what the agent sees; only pixels are rendered")
    size: tuple[int, ...] = _field((64, 64), "height and width of the image", "pixels")
    camera: int = _field(-1, "camera of the image; -1: the usual one of the domain", at_least=-1)


@dataclass(frozen=True)
class AtariConfig:
    """Arcade Learning Environment; the defaults are the protocol of the 100k benchmark."""

    size: tuple[int, ...] = _field((64, 64), "height and width of the image", "pixels")
    gray: bool = _field(False, "one channel of luminance instead of three of colour")
    sticky: float = _field(0.0, "probability that a frame repeats the action before", "probability", below=1)
    noops: int = _field(30, "a game starts with 0 to this many frames without action", "frames", at_least=0)
    actions: Literal["needed", "all"] = _field("needed", "actions the game distinguishes, or all 18")
    lives: Literal["ignore", "terminal", "reset"] = _field(
        "ignore",
        "a lost life means nothing, ends the episode as terminal and the next one continues the game, or ends both "
        "episode and game; unless ignored, scores are those of single lives",
    )
    max_frames: int = _field(108_000, "frames of a game, no-ops not counted, after which it is truncated", "frames")


@dataclass(frozen=True)
class MiniGridConfig:
    """MiniGrid."""

    obs: Literal["symbolic", "image"] = _field("symbolic", "what lies in the agent's view, as classes or as pixels")
    size: tuple[int, ...] = _field((64, 64), "height and width of the image", "pixels")


@dataclass(frozen=True)
class EnvConfig:
    """How environments are made and stepped."""

    count: int = _field(16, "environments stepped in parallel", "environments")
    workers: Literal["sync", "async"] = _field(
        "sync", "step environments one after another in this process, or in worker processes over shared memory"
    )
    per_worker: int = _field(1, "environments in each worker process", "environments")
    timeout: float = _field(
        60.0, "a worker that takes longer for a step is stopped and started anew", "seconds", above=0
    )
    failures: int = _field(
        10, "failures in a row, without a good episode between them, that end the run", "failures", at_least=0
    )
    repeat: int = _field(1, "times each action is applied; rewards are summed", "env steps per agent step")
    clip_reward: float = _field(
        0.0, "rewards are cut off at plus and minus this, after summing repeats; 0: not", "reward"
    )
    check: bool = _field(True, "refuse observations that are not finite, or outside their space")
    dmc: DMCConfig = _field(DMCConfig(), "DeepMind Control")
    atari: AtariConfig = _field(AtariConfig(), "Atari")
    minigrid: MiniGridConfig = _field(MiniGridConfig(), "MiniGrid")


@dataclass(frozen=True)
class ReplayConfig:
    """Experience replay and the batches drawn from it."""

    capacity: int = _field(5_000_000, "steps kept; the oldest are forgotten", "agent steps")
    batch_size: int = _field(16, "sequences per update (B)", "sequences")
    batch_length: int = _field(64, "steps per sequence (T)", "agent steps", at_least=2)
    online: bool = _field(True, "use every fresh sequence once before sampling uniformly")


@dataclass(frozen=True)
class RSSMConfig:
    """Recurrent state-space model: block GRU with categorical latents."""

    deter: int = _field(8192, "width of the recurrent state (D)", "units")
    hidden: int = _field(1024, "width of the layers around it", "units")
    stoch: int = _field(32, "categorical variables (S)", "variables")
    classes: int = _field(64, "classes of each variable (C)", "classes", at_least=2, at_most=2**16)
    blocks: int = _field(8, "diagonal blocks of the recurrent matrix (G)", "blocks")
    prior_layers: int = _field(2, "hidden layers of the prior", "layers", at_least=0)
    posterior_layers: int = _field(1, "hidden layers of the posterior", "layers", at_least=0)
    unimix: float = _field(
        0.01, "share of the uniform distribution mixed into prior and posterior", "probability", below=1
    )
    free_nats: float = _field(1.0, "KL below this is free, per step, after summing the variables", "nats")


@dataclass(frozen=True)
class NetsConfig:
    """Encoder, decoder and heads."""

    units: int = _field(1024, "width of every multilayer perceptron", "units")
    depth: int = _field(64, "base channels of the convolutions", "channels")
    mults: tuple[int, ...] = _field((2, 3, 4, 4), "channel multipliers, one per halving of the image")
    kernel: int = _field(5, "kernel size of the convolutions", "pixels")
    encoder_layers: int = _field(3, "hidden layers of the vector encoder", "layers", at_least=0)
    decoder_layers: int = _field(3, "hidden layers of the vector decoder", "layers", at_least=0)
    reward_layers: int = _field(1, "hidden layers of the reward head", "layers", at_least=0)
    cont_layers: int = _field(1, "hidden layers of the continue head", "layers", at_least=0)
    actor_layers: int = _field(3, "hidden layers of the actor", "layers", at_least=0)
    critic_layers: int = _field(3, "hidden layers of the critic", "layers", at_least=0)
    bins: int = _field(
        255, "bins of the symexp two-hot distribution; odd, so that one bin is exactly 0", "bins", at_least=3
    )
    dtype: Literal["float32", "bfloat16"] = _field(
        "bfloat16", "dtype of activations; parameters, norms, softmax, losses and moments are float32 always"
    )


@dataclass(frozen=True)
class BehaviorConfig:
    """Actor and critic, learned in imagination."""

    horizon: int = _field(15, "imagined steps (H)", "agent steps")
    starts: int = _field(
        0, "imagination starts from the last this many states of each sequence; 0: from all", "states", at_least=0
    )
    return_horizon: float = _field(333.0, "discount = 1 - 1 / return_horizon", "agent steps", above=1)
    return_lambda: float = _field(0.95, "mixing of the lambda-return", at_most=1)
    cont_discount: bool = _field(True, "train the continue head on (1 - terminal) * discount instead of 1 - terminal")
    entropy: float = _field(3e-4, "scale of the entropy bonus")
    actor_unimix: float = _field(
        0.01, "share of the uniform distribution mixed into discrete actions (the paper's; official code: 0)", below=1
    )
    min_std: float = _field(0.1, "smallest standard deviation of continuous actions", above=0)
    max_std: float = _field(1.0, "largest standard deviation of continuous actions", above=0)
    return_rate: float = _field(0.01, "rate of the moving average of return percentiles", "per update", at_most=1)
    return_limit: float = _field(1.0, "returns are never scaled up: the divisor is at least this", "reward", above=0)
    slow_rate: float = _field(0.02, "rate at which the slow critic follows the critic", "per update", at_most=1)
    slow_regularizer: float = _field(1.0, "weight of the slow critic's prediction as a second target")
    replay_gradient: bool = _field(True, "the critic's loss on replayed rewards trains the world model, too")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of the one loss."""

    reconstruction: float = _field(1.0, "weight of every observation key")
    reward: float = _field(1.0, "weight of the reward head")
    cont: float = _field(1.0, "weight of the continue head")
    dyn: float = _field(1.0, "weight of KL(stop_gradient(posterior) || prior)")
    rep: float = _field(0.1, "weight of KL(posterior || stop_gradient(prior))")
    actor: float = _field(1.0, "weight of the policy gradient and the entropy bonus")
    critic: float = _field(1.0, "weight of the critic on imagined returns")
    replay_critic: float = _field(0.3, "weight of the critic on replayed rewards")


@dataclass(frozen=True)
class OptimizerConfig:
    """LaProp with adaptive gradient clipping."""

    lr: float = _field(4e-5, "learning rate", above=0)
    warmup: int = _field(1000, "updates over which the learning rate rises from 0", "updates", at_least=0)
    anneal: int = _field(
        0,
        "update from which the learning rate is a tenth, falling after the warm-up; 0: constant",
        "updates",
        at_least=0,
    )
    clip: float = _field(0.3, "largest ratio of gradient norm to parameter norm, per tensor; 0 disables")
    clip_min: float = _field(1e-3, "parameter norms below this count as this", above=0)
    beta1: float = _field(0.9, "decay of the momentum", below=1)
    beta2: float = _field(0.999, "decay of the second moment", below=1)
    eps: float = _field(1e-20, "added to the root of the second moment", above=0)
    moments: Literal["auto", "replicated", "sharded"] = _field(
        "auto",
        "with several devices: both moments whole on each, or divided among them; auto divides arrays of a million "
        "numbers and more",
    )


@dataclass(frozen=True)
class PopulationConfig:
    """Agents trained side by side in one program, each as it would be alone; needs ``run.loop=device``."""

    seeds: int = _field(
        1, "members for each combination of values: seed, seed + 1, ...; 'population=8' for short", "members"
    )
    sweep: tuple[str, ...] = _field(
        (),
        "numbers in which members differ, each as 'optimizer.lr=[1e-4, 3e-4]'; members are all combinations; "
        "'population.lr=[1e-4,3e-4]' for short",
    )


@dataclass(frozen=True)
class LoadConfig:
    """Parameters that a new run takes from another one; a run that is resumed has its own."""

    from_: str = _field(
        "", "directory of a run, or of one of its checkpoints, from which a new run takes parameters; empty: fresh ones"
    )
    only: Literal["all", "world_model", "encoder", "decoder", "dynamics", "behavior", "actor", "critic"] = _field(
        "all", "the part that is taken, as far as names and shapes agree; behavior is actor and critic"
    )


@dataclass(frozen=True)
class RunConfig:
    """How long to train, and what to write down."""

    loop: Literal["host", "device"] = _field(
        "host",
        "step environments on the host, or, for tasks jax_NAME, craftax_NAME and playground_NAME, run environments, "
        "replay and updates as one program on the accelerator",
    )
    env_steps: int = _field(
        1_000_000,
        "train until this many environment steps were taken; the device loop counts resets among them",
        "env steps",
    )
    profile: int = _field(
        0, "record so many updates with JAX's profiler, after the first ten; 0 for none", "updates", at_least=0
    )
    episodes: int = _field(0, "stop after this many episodes; 0: any number", "episodes", at_least=0)
    hours: float = _field(0.0, "stop after training for this long, all resumes together; 0: any time", "hours")
    score: float = _field(
        1e9,
        "stop once the mean return of the last ten training episodes is at least this",
        "reward",
        at_least=-1e9,
    )
    max_skipped: int = _field(
        20, "updates skipped in a row, because a number in them is not finite, that end the run", "updates"
    )
    train_ratio: float = _field(32.0, "replayed steps per agent step", "replayed steps per agent step", above=0)
    eval_episodes: int = _field(
        20, "episodes of the closing evaluation, with the policy's mode; 0 skips it", "episodes", at_least=0
    )
    log_every: float = _field(10.0, "seconds between lines of metrics", "seconds")
    save_every: float = _field(600.0, "seconds between checkpoints", "seconds")
    keep: int = _field(2, "checkpoints kept, the newest ones; the best by evaluation stays as well", "checkpoints")


@dataclass(frozen=True)
class LoggerConfig:
    """What is written beside ``metrics.jsonl``."""

    tensorboard: bool = _field(True, "write files for TensorBoard to LOGDIR/tensorboard")
    wandb: bool = _field(False, "send metrics and pictures to Weights & Biases, or keep them for it if out of reach")
    project: str = _field("dreamer", "project at Weights & Biases")
    pictures_every: float = _field(
        300.0, "seconds between predictions of the world model drawn to LOGDIR/pictures; 0: none", "seconds"
    )


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    task: str = _field("gym_CartPole-v1", "environment: gym_ID for any Gymnasium id, or one of the built-in tasks")
    seed: int = _field(0, "one seed from which all randomness is derived", at_least=0, below=2**31)
    logdir: str = _field("", "directory of the run; empty: runs/TIME-TASK-SEED")
    devices: str = _field(
        "1", "how many devices of each host share every update, or the members of a population: number or all"
    )
    distributed: bool = _field(
        False,
        "one run on several hosts, found through the scheduler or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID",
    )
    env: EnvConfig = _field(EnvConfig(), "environments")
    replay: ReplayConfig = _field(ReplayConfig(), "replay")
    rssm: RSSMConfig = _field(RSSMConfig(), "recurrent state-space model")
    nets: NetsConfig = _field(NetsConfig(), "networks")
    behavior: BehaviorConfig = _field(BehaviorConfig(), "actor and critic")
    loss: LossConfig = _field(LossConfig(), "loss weights")
    optimizer: OptimizerConfig = _field(OptimizerConfig(), "optimizer")
    population: PopulationConfig = _field(PopulationConfig(), "population")
    load: LoadConfig = _field(LoadConfig(), "parameters to start from")
    run: RunConfig = _field(RunConfig(), "run")
    logger: LoggerConfig = _field(LoggerConfig(), "logger")

    def __post_init__(self) -> None:
        for key, field, value in _walk(self):
            _require(_has_type(field.type, value) and _in_range(field, value), key, value, _expected(field))
            if key.endswith(".size"):
                _require(len(value) == 2, key, value, "two numbers, height and width")
        number = self.devices.isdecimal() and int(self.devices) >= 1
        _require(number or self.devices == "all", "devices", self.devices, "a number from 1 on, or all")
        deter, blocks = self.rssm.deter, self.rssm.blocks
        _require(deter % blocks == 0, "rssm.deter", deter, f"a multiple of rssm.blocks={blocks}")
        for key, value in (("nets.bins", self.nets.bins), ("nets.kernel", self.nets.kernel)):
            _require(value % 2 == 1, key, value, "an odd number")
        _require(len(self.nets.mults) > 0, "nets.mults", self.nets.mults, "at least one multiplier")
        low, high = self.behavior.min_std, self.behavior.max_std
        _require(low <= high, "behavior.min_std", low, f"at most behavior.max_std={high}")
        length, starts = self.replay.batch_length, self.behavior.starts
        _require(starts <= length, "behavior.starts", starts, f"0 to replay.batch_length={length}")
        anneal, warmup = self.optimizer.anneal, self.optimizer.warmup
        _require(not 0 < anneal <= warmup, "optimizer.anneal", anneal, f"0, or more than optimizer.warmup={warmup}")
        capacity, steps = self.replay.capacity, self.env.count * (length + 1)
        why = f"at least env.count * (replay.batch_length + 1) = {steps}, room for one sequence per environment"
        _require(capacity >= steps, "replay.capacity", capacity, why)


def halvings(height: int, width: int, most: int) -> int:
    """How many times the convolutions halve an image: as often as possible, at most ``most``, to 3 pixels or more.

    Raises:
        ConfigError: the remaining image is larger than 16 pixels or cannot be halved at all; names legal sizes.
    """
    count, sides = 0, (height, width)
    while count < most and all(side % 2 ** (count + 1) == 0 and side // 2 ** (count + 1) >= 3 for side in sides):
        count += 1
    if count == 0 or max(height, width) // 2**count > 16:
        legal = sorted({small * 2**k for k in range(1, most + 1) for small in range(3, 17)})
        raise ConfigError(
            f"An image of {height}x{width} pixels cannot be encoded: height and width must be halved together between "
            f"1 and {most} times (the length of nets.mults) and end between 3 and 16 pixels. Legal sides are {legal}, "
            "if both sides allow the same number of halvings. Resize or pad the image."
        )
    return count


# --------------------------------------------------------------------------------------------------------------------
# Types and ranges


def _walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf of a config as ``(dotted key, field, value)``, in the order of definition."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{_key(field.name)}.")
        else:
            yield f"{prefix}{_key(field.name)}", field, value


def _key(name: str) -> str:
    """Key of a field: its name, where Python allows it; ``from`` is a word of Python's own, and its field ``from_``."""
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


def _keys(values: Any) -> Any:
    """Nested dictionaries with keys in place of names of fields."""
    return {_key(name): _keys(value) for name, value in values.items()} if isinstance(values, dict) else values


def _names(values: Any) -> Any:
    """Inverse of `_keys`."""
    if not isinstance(values, dict):
        return values
    return {f"{key}_" if keyword.iskeyword(str(key)) else key: _names(value) for key, value in values.items()}


@functools.cache
def _leaves() -> dict[str, Any]:
    """Field of every leaf by dotted key."""
    return {key: field for key, field, _ in _walk(Config())}


def _require(condition: bool, key: str, got: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={got} cannot be used: expected {expected}.")


def check_value(key: str, value: Any) -> None:
    """Raise `ConfigError` unless a value has the type and lies in the range of its key, whatever the other keys are."""
    field = _leaves()[key]
    _require(_has_type(field.type, value) and _in_range(field, value), key, value, _expected(field))


def _has_type(kind: Any, value: Any) -> bool:
    """Whether a value is of the type of its field; an integer is a number, a boolean is not."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_has_type(get_args(kind)[0], item) for item in value)
    return type(value) in (int, float) if kind is float else type(value) is kind


def _in_range(field: Any, value: Any) -> bool:
    """Whether a value of the right type is finite and within the bounds of its field; so for every item of a tuple."""
    if isinstance(value, bool | str):
        return True
    items = value if isinstance(value, tuple) else (value,)
    if any(isinstance(item, str) for item in items):
        return True
    bounds = field.metadata["bounds"].items()
    return all(abs(item) < math.inf and all(_ORDER[word](item, limit) for word, limit in bounds) for item in items)


def _expected(field: Any) -> str:
    """What a field takes, in words."""
    kind, bounds = field.type, field.metadata["bounds"].items()
    if kind == tuple[str, ...]:
        return "a list of texts"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind in (int, float) or get_origin(kind) is tuple:
        name = {int: "an integer,", float: "a finite number,"}.get(kind, "a list of integers, each")
        return f"{name} {' and '.join(f'{word} {limit}' for word, limit in bounds).replace('_', ' ')}"
    return {bool: "true or false", str: "text"}.get(kind, kind.__name__)


# --------------------------------------------------------------------------------------------------------------------
# Presets and overrides


def preset_directory() -> pathlib.Path:
    """Directory of the preset files: ``configs/`` of a checkout, or its copy inside an installed package."""
    here = pathlib.Path(__file__).resolve().parent
    packaged = here / "configs"
    return packaged if packaged.is_dir() else here.parent / "configs"


def presets() -> dict[str, str]:
    """Names of all presets (``size/12m``, ``cartpole``, ...) with the first line of their header comment."""
    root = preset_directory()
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        if path.parent.name == "sweeps":
            continue  # Those hold many runs.
        first = path.read_text().splitlines()[0] if path.stat().st_size else ""
        found[path.relative_to(root).with_suffix("").as_posix()] = first.lstrip("# ").strip()
    return found


def load(names: Sequence[str] = (), overrides: Sequence[str] = ()) -> Config:
    """Build a config from the defaults, then presets left to right, then overrides.

    Args:
        names: preset names relative to ``configs/``, without suffix.
        overrides: strings ``key=value`` with dotted keys. Values are YAML, except that those of keys that hold text are
            taken as they stand: ``logdir=007`` is no number.

    Returns:
        The resolved, validated config.

    Raises:
        ConfigError: unknown preset or key (naming the nearest), wrong type, or values that do not fit together.
    """
    merged = OmegaConf.structured(Config)
    for name in names:
        merged = _merge(merged, _read_preset(name), f"preset {name}")
    return _finish(_apply(merged, overrides))


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A config with ``key=value`` overrides applied, as in `load`."""
    return _finish(_apply(OmegaConf.structured(config), overrides))


def from_dict(values: dict[str, Any]) -> Config:
    """Rebuild a config from `to_dict`, checking keys, types and ranges; raises `ConfigError`.

    Keys that had another name when it was saved are understood.
    """
    run = values.get("run")
    if isinstance(run, dict) and "stop_score" in run:
        kept = {key: value for key, value in run.items() if key != "stop_score"}
        values = {**values, "run": {"score": run["stop_score"], **kept}}
    return _finish(_merge(OmegaConf.structured(Config), values, "saved config"))


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain dictionaries, lists and scalars, ready for YAML or JSON."""
    return yaml.safe_load(to_yaml(config))


def to_yaml(config: Config) -> str:
    """The config as YAML text that `load_yaml` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(_keys(OmegaConf.to_container(OmegaConf.structured(config)))))


def load_yaml(path: str | os.PathLike[str]) -> Config:
    """Read a resolved ``config.yaml`` of a run; raises `ConfigError` if it is not one."""
    try:
        values = yaml.safe_load(pathlib.Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable config: {_in_one_line(error)}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, expected a mapping of config keys.")
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path} is not a usable config. {error}") from error


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, as ``{key: (old, new)}``."""
    old_items, new_items = dict(flatten(old)), dict(flatten(new))
    return {key: (old_items[key], new_items[key]) for key in old_items if old_items[key] != new_items[key]}


def flatten(config: Config) -> Iterator[tuple[str, Any]]:
    """Every leaf of a config as ``(dotted key, value)``, in the order of definition."""
    return ((key, value) for key, _, value in _walk(config))


def reference() -> str:
    """Help text: every key with type, default, unit and meaning, one per line."""
    lines: list[str] = []

    def describe(cls: Any, prefix: str) -> None:
        for field in dataclasses.fields(cls):
            key = prefix + _key(field.name)
            if dataclasses.is_dataclass(field.type):
                lines.append(f"\n{key}: {field.metadata['help']}")
                describe(field.type, f"{key}.")
                continue
            kind = getattr(field.type, "__name__", "") if isinstance(field.type, type) else str(field.type)
            kind = kind.replace("typing.", "")
            default = f"'{field.default}'" if isinstance(field.default, str) else field.default
            unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
            lines.append(f"  {key:<28} {kind} = {default}{unit}\n      {field.metadata['help']}")

    describe(Config, "")
    return "\n".join(lines)


def _read_preset(name: str) -> dict[str, Any]:
    root = preset_directory()
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"There is no preset '{name}'.{hint} The presets are: {', '.join(known)}.")
    try:
        values = yaml.safe_load((root / f"{name}.yaml").read_text()) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"Preset '{name}' is not valid YAML: {_in_one_line(error)}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Preset '{name}' holds a {type(values).__name__}, expected a mapping of config keys.")
    return values


def _apply(merged: Any, overrides: Sequence[str]) -> Any:
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"Override '{item}' is not of the form key=value, for example seed=3.")
        key, value = _spell_out(key.strip(), value, merged.population.sweep)
        merged = _merge(merged, _nest(key, _parse(key, value)), f"override '{item}'")
    return merged


def _spell_out(key: str, value: str, sweep: Sequence[str]) -> tuple[str, str]:
    """The override that is meant by ``population=8`` or ``population.lr=[1e-4,3e-4]``; any other as it is.

    ``sweep`` holds the entries of ``population.sweep`` so far; those of other keys stay.
    """
    section, dot, name = key.partition(".")
    if section != "population" or key in _leaves():
        return key, value
    if not dot:
        return "population.seeds", value
    meant = [leaf for leaf in _leaves() if leaf == name or leaf.endswith(f".{name}")]
    if len(meant) != 1:
        near = difflib.get_close_matches(name, {leaf.rpartition(".")[2] for leaf in _leaves()}, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        found = f"is short for {' and '.join(meant)}: name one in full" if meant else f"is the name of no key.{hint}"
        raise ConfigError(f"In the override '{key}={value}': '{name}' {found.rstrip('.')}.")
    others = [entry for entry in sweep if entry.partition("=")[0] != meant[0]]
    return "population.sweep", yaml.safe_dump([*others, f"{meant[0]}={value}"])


def _parse(key: str, value: str) -> Any:
    if not value or (key in _leaves() and isinstance(_leaves()[key].default, str)):
        return value
    try:
        return yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"The value in '{key}={value}' is not valid YAML: {_in_one_line(error)}.") from error


def _in_one_line(error: Exception) -> str:
    """The message of an error without its drawing of the place; says line and column instead."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split()).rstrip(".")


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _reject_interpolation(value: Any, source: str) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _reject_interpolation(item, source)
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(f"The {source} contains '{value}': interpolation is not allowed in configs.")


def _reject_wrong_types(values: dict[str, Any], source: str, prefix: str = "") -> None:
    """OmegaConf would convert some values without a word, and has no message for others."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if _key(str(name)) != name:
            raise ConfigError(f"In the {source}: There is no key '{key}'. Did you mean: '{_key(name)}'?")
        if field := _leaves().get(key):
            given = tuple(value) if isinstance(value, list) else value
            # YAML takes 4e-4 for text, as it has no point.
            if not _has_type(field.type, given) and not (field.type is float and _is_number(given)):
                raise ConfigError(f"In the {source}: {key} is {value!r}, expected {_expected(field)}.")
        elif isinstance(value, dict):
            _reject_wrong_types(value, source, f"{key}.")


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return isinstance(text, str)


def _merge(base: Any, values: dict[str, Any], source: str) -> Any:
    _reject_interpolation(values, source)
    _reject_wrong_types(values, source)
    try:
        return OmegaConf.merge(base, _names(values))
    except (OmegaConfBaseException, OverflowError) as error:
        # What it knows are names of fields, and what the reader knows are keys.
        lines = re.sub(r"\w+", lambda word: _key(word[0]), str(error)).splitlines()
        key = next((line.partition(":")[2].strip() for line in lines if "full_key" in line), "")
        where = f" (key '{key}')" if key else ""
        raise ConfigError(f"In the {source}: {lines[0].rstrip('.')}{where}. See --help for all keys.") from error


def _finish(merged: Any) -> Config:
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config
