"""Configs from presets and overrides, and to and from files.

`load` starts from the defaults, applies presets from ``configs/`` left to right, then ``key=value`` overrides. Unknown
keys and wrong types fail at once with the nearest valid name.
"""

import difflib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamer.config import documents, paths
from dreamer.config.fields import ConfigError, describe_field, has_type, key_of, keys_of, names_of, shorten, walk
from dreamer.config.schema import Config, leaves

BASE = "base"
"""Key of a preset file that names the preset it builds on."""

_SYNONYMS = {
    **dict.fromkeys(("env", "env_id", "env_name", "env.id", "env.name", "environment", "gym_id"), "task"),
    **dict.fromkeys(("envs", "env_num", "n_envs", "num_envs", "num_environments", "num_workers"), "env.count"),
    **dict.fromkeys(("action_repeat", "frame_skip", "frameskip"), "env.repeat"),
    **dict.fromkeys(("image_size", "img_size", "resize", "screen_size"), "env.size"),
    **dict.fromkeys(("gray_scale", "grayscale", "greyscale"), "env.gray"),
    **dict.fromkeys(("cnn_keys", "mlp_keys", "obs_keys"), "env.keys"),
    **dict.fromkeys(("buffer_capacity", "buffer_size", "replay_capacity", "replay_size"), "replay.capacity"),
    **dict.fromkeys(("per_rank_batch_size", "minibatch_size"), "replay.batch_size"),
    **dict.fromkeys(("per_rank_sequence_length", "seq_len", "sequence_length"), "replay.batch_length"),
    **dict.fromkeys(("learning_rate", "model_lr"), "optimizer.lr"),
    **dict.fromkeys(("discount", "gamma"), "behavior.return_horizon"),
    **dict.fromkeys(("gae_lambda", "lambda", "lmbda"), "behavior.return_lambda"),
    **dict.fromkeys(("actent", "ent_coef", "entropy_coef"), "behavior.entropy"),
    **dict.fromkeys(("imag_horizon", "imag_length", "imagination_horizon"), "behavior.horizon"),
    **dict.fromkeys(("num_env_steps", "num_steps", "steps", "total_env_steps", "total_steps"), "run.env_steps"),
    **dict.fromkeys(("max_steps", "num_timesteps", "total_timesteps", "train_steps"), "run.env_steps"),
    **dict.fromkeys(("replay_ratio", "utd", "utd_ratio"), "run.train_ratio"),
    **dict.fromkeys(("eval_eps", "n_eval_episodes", "num_eval_episodes"), "run.eval_episodes"),
    **dict.fromkeys(("checkpoint_every", "save_freq", "save_interval"), "run.save_every"),
    **dict.fromkeys(("log_freq", "log_interval"), "run.log_every"),
    **dict.fromkeys(("log_dir", "out_dir", "outdir", "output", "output_dir", "save_dir", "work_dir"), "logdir"),
    **dict.fromkeys(("fp16", "precision"), "nets.dtype"),
    **dict.fromkeys(("random_seed", "random_state"), "seed"),
    **dict.fromkeys(("track", "use_wandb"), "logger.wandb"),
    **dict.fromkeys(("device", "gpus", "num_devices"), "devices"),
}
"""Keys of other programs, without their sections, and the key for the same here."""


def preset_directory() -> pathlib.Path:
    """Directory of the preset files: ``configs/`` of a checkout, or its copy inside an installed package."""
    here = pathlib.Path(__file__).resolve().parent.parent
    packaged = here / "configs"
    return packaged if packaged.is_dir() else here.parent / "configs"


def presets() -> dict[str, str]:
    """Names of all presets (``size/12m``, ``cartpole``, ...) with the first line of their header comment."""
    root = preset_directory()
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        if path.parent.name == "sweeps":
            continue  # A sweep holds many runs.
        first = path.read_text().splitlines()[0] if path.stat().st_size else ""
        found[path.relative_to(root).with_suffix("").as_posix()] = first.lstrip("# ").strip()
    return found


def load(names: Sequence[str] = (), overrides: Sequence[str] = ()) -> Config:
    """Build a config from the defaults, then presets left to right, then overrides.

    Args:
        names: preset names relative to ``configs/``, without suffix, or paths of YAML files like these
            (``mine.yaml``, ``~/presets/mine.yaml``). A preset may name another as its ``base``, which comes before it.
        overrides: strings ``key=value`` with dotted keys. Values are YAML, except that those of keys that hold text are
            taken literally: ``logdir=007`` is not a number. One text may stand for a list: ``env.keys=robot.*``.

    Returns:
        The resolved, validated config.

    Raises:
        ConfigError: unknown preset or key (naming the nearest), wrong type, or values that do not fit together.
    """
    merged = OmegaConf.structured(Config)
    for name, values in _with_bases(names).items():
        merged = _merge(merged, values, f"preset {name}")
    return _finish(_apply(merged, overrides))


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A config with ``key=value`` overrides applied, as in `load`."""
    return _finish(_apply(OmegaConf.structured(config), overrides))


def from_dict(values: dict[str, Any]) -> Config:
    """Rebuild a config from `to_dict`, checking keys, types and ranges; raises `ConfigError`.

    Keys that had another name when the config was saved are understood.
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
    return OmegaConf.to_yaml(OmegaConf.create(keys_of(OmegaConf.to_container(OmegaConf.structured(config)))))


def load_yaml(path: str | os.PathLike[str]) -> Config:
    """Read the resolved ``config.yaml`` of a run; raises `ConfigError` if it is not one."""
    path = paths.expand(path)
    try:
        values = documents.read(path)
    except documents.DocumentError as error:
        raise ConfigError(f"{path} is not a readable config: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, expected a mapping of config keys.")
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path} is not a usable config. {error}") from error


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, as ``{key: (old, new)}``."""
    old_items = dict(flatten(old))
    new_items = dict(flatten(new))
    return {key: (old_items[key], new_items[key]) for key in old_items if old_items[key] != new_items[key]}


def flatten(config: Config) -> Iterator[tuple[str, Any]]:
    """Every leaf of a config as ``(dotted key, value)``, in the order of definition."""
    return ((key, value) for key, _, value in walk(config))


def _with_bases(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the presets hold by name, each behind the one that it names as its base; every base once.

    Two presets of one base can then be combined, and the second does not undo what the first sets.
    """
    chain: dict[str, dict[str, Any]] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        values = _read_preset(name)
        if BASE in values:
            base = values.pop(BASE)
            if not isinstance(base, str):
                raise ConfigError(f"Preset '{name}' has the {BASE} {base!r}, expected the name of one preset.")
            if _is_path(name) and _is_path(base):
                base = str(pathlib.Path(name).expanduser().parent / pathlib.Path(base).expanduser())
            if base in (*above, name):
                raise ConfigError(f"Preset '{name}' is its own {BASE}: {' -> '.join((*above, name, base))}.")
            if base not in chain:
                add(base, (*above, name))
        # A preset that is given twice counts where it comes last, a base where it comes first.
        if not above:
            chain.pop(name, None)
        chain[name] = values

    for name in names:
        add(name, ())
    return chain


def _read_preset(name: str) -> dict[str, Any]:
    known = presets()
    path = preset_directory() / f"{name}.yaml" if name in known else pathlib.Path(name).expanduser()
    if name not in known and not (_is_path(name) and path.is_file()):
        near = difflib.get_close_matches(re.sub(r"\.ya?ml$", "", name).removeprefix("configs/"), known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        what = f"file '{name}', and no preset of that name" if name.endswith((".yaml", ".yml")) else f"preset '{name}'"
        raise ConfigError(f"There is no {what}.{hint} The presets are: {', '.join(known)}.")
    try:
        values = documents.read(path) or {}
    except documents.DocumentError as error:
        raise ConfigError(f"Preset '{name}' is not valid YAML: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Preset '{name}' holds a {type(values).__name__}, expected a mapping of config keys.")
    return values


def _is_path(name: str) -> bool:
    """Whether the name of a preset can be the path of a file; names of presets may have slashes, too."""
    return name.endswith((".yaml", ".yml")) or (os.sep in name and name not in presets())


def _apply(merged: Any, overrides: Sequence[str]) -> Any:
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or item.startswith("--"):
            near = nearest_keys(key) if item.startswith("--") else []
            hint = f" Did you mean {near[0]}={shorten(value, str) or 'VALUE'}?" if near else ""
            given = shorten(item, str)
            raise ConfigError(f"Override '{given}' is not of the form key=value, for example seed=3.{hint}")
        key, value = _expand(key.strip(), value, merged.population.sweep)
        merged = _merge(merged, _nest(key, _parse(key, value)), f"override '{shorten(item, str)}'")
    return merged


def _expand(key: str, value: str, sweep: Sequence[str]) -> tuple[str, str]:
    """The override that ``population=8`` or ``population.lr=[1e-4,3e-4]`` is short for; any other unchanged.

    ``sweep`` holds the entries of ``population.sweep`` up to now; those of other keys stay.
    """
    section, dot, name = key.partition(".")
    if section != "population" or key in leaves():
        return key, value
    if not dot:
        return "population.seeds", value
    # Members share how they plan, ensembles, and Adam's groups, so keys of these do not make a name ambiguous.
    shared = re.compile(r"planner\.|ensemble\.|optimizer\.\w+\.")
    candidates = [leaf for leaf in leaves() if not shared.match(leaf)]
    meant = [leaf for leaf in candidates if leaf == name or leaf.endswith(f".{name}")]
    if len(meant) != 1:
        near = difflib.get_close_matches(name, {leaf.rpartition(".")[2] for leaf in leaves()}, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        found = f"is short for {' and '.join(meant)}: name one in full" if meant else f"is the name of no key.{hint}"
        raise ConfigError(f"In the override '{key}={value}': '{name}' {found.rstrip('.')}.")
    others = [entry for entry in sweep if entry.partition("=")[0] != meant[0]]
    return "population.sweep", yaml.safe_dump([*others, f"{meant[0]}={value}"])


def _parse(key: str, value: str) -> Any:
    if not value or (key in leaves() and isinstance(leaves()[key].default, str)):
        return value
    if key in leaves() and leaves()[key].type == tuple[str, ...] and value[0] not in "[-":
        return [value]  # One text may stand for a list of it; a pattern may begin like an alias of YAML.
    try:
        return documents.parse(value)
    except documents.DocumentError as error:
        raise ConfigError(f"The value in '{key}={shorten(value, str)}' is not valid YAML: {error}.") from error


def nearest_keys(name: str) -> list[str]:
    """Config keys that may have been meant by one that does not exist, or by an option such as ``--learning-rate``.

    Args:
        name: the key or option, with or without its section.

    Returns:
        The likeliest keys, at most three, the best first; none if no key resembles it.
    """
    name = name.lstrip("-+").replace("-", "_").lower()
    section, _, last = name.rpartition(".")
    rare = tuple(f"{other}." for other in ("planner", "ensemble") if other != section)
    keys = [key for key in leaves() if not key.startswith(rare)]
    exact = [key for key in keys if key == name] or [key for key in keys if key.rpartition(".")[2] == last]
    if meant := _SYNONYMS.get(name) or _SYNONYMS.get(last):
        return [meant]
    if exact:
        return sorted(exact, key=lambda key: (not key.startswith(f"{section}."), key.count(".")))[:3]
    by_last = {key.rpartition(".")[2]: key for key in reversed(keys)}
    within = [key for key in keys if section and key.startswith(f"{section}.")]
    return (
        difflib.get_close_matches(name, within, 1, 0.8)
        or difflib.get_close_matches(name, keys, 1, 0.8)
        or [by_last[near] for near in difflib.get_close_matches(last, by_last, 1, 0.75)]
    )


def _nest(key: str, value: Any) -> dict[str, Any]:
    """``a.b.c`` and a value as ``{a: {b: {c: value}}}``, from the inside out."""
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
    """Raise `ConfigError`: OmegaConf would convert some values silently, and has no message for others."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key_of(str(name)) != name:
            raise ConfigError(f"In the {source}: There is no key '{key}'. Did you mean: '{key_of(name)}'?")
        if key not in leaves() and not any(leaf.startswith(f"{key}.") for leaf in leaves()):
            while isinstance(value, dict) and len(value) == 1:
                ((inner, value),) = value.items()
                key = f"{key}.{inner}"
            raise ConfigError(f"In the {source}: There is no key '{key}'.{_suggest(key)} See --help for all keys.")
        if key not in leaves() and not isinstance(value, dict):
            raise ConfigError(
                f"In the {source}: '{key}' is a section and got {value!r}, expected keys of it, as in "
                f"{next(leaf for leaf in leaves() if leaf.startswith(f'{key}.'))}.{_suggest(key)}"
            )
        if field := leaves().get(key):
            given = tuple(value) if isinstance(value, list) else value
            # YAML takes 4e-4 for text, because it has no point.
            if not has_type(field.type, given) and not (field.type is float and _is_number(given)):
                raise ConfigError(f"In the {source}: {key} is {shorten(value)}, expected {describe_field(field)}.")
        elif isinstance(value, dict):
            _reject_wrong_types(value, source, f"{key}.")


def _suggest(key: str) -> str:
    near = nearest_keys(key)
    return f" Did you mean {' or '.join(repr(key) for key in near)}?" if near else ""


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
        return OmegaConf.merge(base, names_of(values))
    except (OmegaConfBaseException, OverflowError) as error:
        # OmegaConf speaks of names of fields, but readers know keys.
        lines = re.sub(r"\w+", lambda word: key_of(word[0]), str(error)).splitlines()
        key = next((line.partition(":")[2].strip() for line in lines if "full_key" in line), "")
        where = f" (key '{key}')" if key else ""
        raise ConfigError(f"In the {source}: {lines[0].rstrip('.')}{where}. See --help for all keys.") from error


def _finish(merged: Any) -> Config:
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config
