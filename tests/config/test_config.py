"""Presets stack, overrides are typed, a mistake is named in one sentence, and a config survives being saved."""

import dataclasses
import math
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from dreamer import config as configuration
from dreamer.config import Config, ConfigError, fields, load, loading
from dreamer.config.schema import leaves

PRESETS = sorted(configuration.presets())
SIZES = {
    "size/1m": (512, 64, 4, 4, 64),
    "size/12m": (2048, 256, 16, 16, 256),
    "size/25m": (3072, 384, 24, 24, 384),
    "size/50m": (4096, 512, 32, 32, 512),
    "size/100m": (6144, 768, 48, 48, 768),
    "size/200m": (8192, 1024, 64, 64, 1024),
    "size/400m": (12288, 1536, 96, 96, 1536),
}


@pytest.fixture
def preset_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty preset directory in place of ``configs/``."""
    monkeypatch.setattr(loading, "preset_directory", lambda: tmp_path)
    return tmp_path


def sentence(*names: str, overrides: tuple[str, ...] = ()) -> str:
    """The message with which `load` refuses."""
    with pytest.raises(ConfigError) as caught:
        load(names, overrides)
    return str(caught.value)


# Defaults and presets


def test_without_presets_the_config_is_the_default() -> None:
    assert load() == Config()


def test_defaults_are_the_published_ones() -> None:
    config = Config()
    assert (config.replay.batch_size, config.replay.batch_length, config.replay.capacity) == (16, 64, 5_000_000)
    assert (config.env.count, config.run.train_ratio) == (16, 32.0)
    assert (config.behavior.horizon, config.behavior.return_lambda, config.behavior.entropy) == (15, 0.95, 3e-4)
    assert (config.behavior.return_horizon, config.behavior.starts) == (333.0, 0)
    assert (config.loss.dyn, config.loss.rep, config.loss.replay_critic) == (1.0, 0.1, 0.3)
    assert (config.optimizer.lr, config.optimizer.warmup, config.optimizer.clip) == (4e-5, 1000, 0.3)
    assert (config.optimizer.beta1, config.optimizer.beta2, config.optimizer.eps) == (0.9, 0.999, 1e-20)
    assert load(["size/200m"]) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_says_how_to_run_it(name: str) -> None:
    config = load([name])
    assert configuration.from_dict(configuration.to_dict(config)) == config
    assert "python -m dreamer.train" in (configuration.preset_directory() / f"{name}.yaml").read_text()
    assert configuration.presets()[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_holds_only_leaves_that_exist(name: str) -> None:
    values = yaml.safe_load((configuration.preset_directory() / f"{name}.yaml").read_text())
    known = {key for key, _ in configuration.flatten(Config())} | {"base"}

    def leaves(tree: dict, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in tree.items():
            found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
        return found

    assert leaves(values) <= known


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name: str) -> None:
    config = load([name])
    got = (config.rssm.deter, config.rssm.hidden, config.rssm.classes, config.nets.depth, config.nets.units)
    assert got == SIZES[name]


def test_presets_stack_left_to_right_and_overrides_come_last(preset_files: pathlib.Path) -> None:
    (preset_files / "first.yaml").write_text("# first\nseed: 1\nrssm: {deter: 64, hidden: 32}\n")
    (preset_files / "more").mkdir()
    (preset_files / "more/second.yaml").write_text("# second\nrssm: {hidden: 48}\nnets: {units: 24}\n")
    config = load(["first", "more/second"], ["nets.units=12"])
    assert (config.seed, config.rssm.deter, config.rssm.hidden, config.nets.units) == (1, 64, 48, 12)
    assert load(["more/second", "first"]).rssm.hidden == 32
    assert configuration.presets() == {"first": "first", "more/second": "second"}


def test_a_preset_builds_on_its_base(preset_files: pathlib.Path) -> None:
    (preset_files / "ground.yaml").write_text("# ground\nseed: 1\nrssm: {deter: 64, hidden: 32}\n")
    (preset_files / "middle.yaml").write_text("# middle\nbase: ground\nseed: 2\n")
    (preset_files / "top.yaml").write_text("# top\nbase: middle\nrssm: {hidden: 16}\n")
    (preset_files / "other.yaml").write_text("# other\nbase: ground\nnets: {units: 24}\n")

    def values(*names: str) -> tuple[int, ...]:
        config = load(names)
        return config.seed, config.rssm.deter, config.rssm.hidden, config.nets.units

    units = Config().nets.units
    assert values("top") == (2, 64, 16, units)
    # The base that both have comes first, and does not undo what one of them sets.
    assert values("top", "other") == values("other", "top") == (2, 64, 16, 24)
    # What is asked for last is last, base or not.
    assert values("top", "ground") == (1, 64, 32, units)


def test_an_empty_preset_changes_nothing(preset_files: pathlib.Path) -> None:
    (preset_files / "empty.yaml").touch()
    assert load(["empty"]) == Config()
    assert configuration.presets() == {"empty": ""}


def test_ranges_are_judged_after_everything_is_merged() -> None:
    overrides = ["behavior.starts=80", "replay.batch_length=80"]
    assert load(overrides=overrides) == load(overrides=overrides[::-1])


# Overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", 3),
        ("seed=1_000", 1000),
        (" seed =3", 3),
        ("optimizer.lr=4e-4", 4e-4),
        ("optimizer.lr=1", 1.0),
        ("loss.rep=0", 0.0),
        ("env.workers=async", "async"),
        ("nets.dtype=float32", "float32"),
        ("nets.mults=[2,3]", (2, 3)),
        ("nets.mults=[1]", (1,)),
        ("replay.online=false", False),
        ("logger.wandb=true", True),
        ("task=gym_Pendulum-v1", "gym_Pendulum-v1"),
        ("logdir=runs/x=1", "runs/x=1"),
        ("logdir=", ""),
        ("logdir=007", "007"),
        ("logdir=2024-01-01", "2024-01-01"),
        ("logdir=1e3", "1e3"),
        ("logdir=[1", "[1"),
        ("logdir=runs: x", "runs: x"),
        ("task=null", "null"),
    ],
)
def test_override(override: str, value: object) -> None:
    got = dict(configuration.flatten(load(overrides=[override])))[override.partition("=")[0].strip()]
    assert got == value
    assert type(got) is type(value)


def test_an_override_may_be_a_group() -> None:
    config = load(overrides=["rssm={deter: 64, blocks: 4}"])
    assert (config.rssm.deter, config.rssm.blocks, config.rssm.hidden) == (64, 4, 1024)


def test_the_last_override_wins() -> None:
    assert load(overrides=["seed=1", "seed=2"]).seed == 2


# Refusals


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("rssm.decter=3", ["no key 'rssm.decter'", "Did you mean 'rssm.deter'?"]),
        ("rsm.deter=3", ["no key 'rsm.deter'", "Did you mean 'rssm.deter'?"]),
        ("sed=3", ["no key 'sed'", "Did you mean 'seed'?"]),
        ("load.frm=x", ["no key 'load.frm'", "Did you mean 'load.from'?"]),
        ("load.from_=x", ["no key 'load.from_'", "Did you mean: 'from'?"]),
        ("zzz.b.c=1", ["no key 'zzz.b.c'. See --help"]),
        ("=3", ["=3", "--help"]),
        ("seed=abc", ["seed is 'abc'", "an integer, at least 0 and below 2147483648"]),
        ("seed=1.5", ["seed is 1.5", "an integer"]),
        ("seed=true", ["seed is True", "an integer"]),
        ("seed=", ["seed is ''", "an integer"]),
        ("seed=null", ["seed is None", "an integer"]),
        ("optimizer.lr=fast", ["optimizer.lr is 'fast'", "a finite number, above 0"]),
        ("optimizer.lr=true", ["optimizer.lr is True", "a finite number"]),
        (f"optimizer.lr={'9' * 400}", ["too large"]),
        ("env.workers=threads", ["env.workers is 'threads'", "one of sync, async"]),
        ("nets.dtype=float16", ["nets.dtype is 'float16'", "one of float32, bfloat16"]),
        ("nets.mults=3", ["nets.mults is 3", "a list of integers, each at least 1"]),
        ("nets.mults=[a]", ["nets.mults is ['a']", "a list of integers, each at least 1"]),
        ("nets.mults=[[1]]", ["nets.mults is [[1]]", "a list of integers"]),
        ("nets.mults=[1.5]", ["nets.mults is [1.5]", "a list of integers"]),
        ("nets.mults=2024-01-01", ["nets.mults is", "a list of integers"]),
        ("logger.wandb=2", ["logger.wandb is 2", "true or false"]),
        ("env.check='false'", ["env.check is 'false'", "true or false"]),
        ("env={check: 0}", ["env.check is 0", "true or false"]),
        ("rssm.deter.x=3", ["rssm.deter is {'x': 3}", "an integer, at least 1"]),
        ("logdir.x=3", ["logdir is {'x': 3}", "expected text"]),
        ("env=3", ["'env' is a section and got 3, expected keys of it, as in env.count"]),
        ("env=null", ["'env' is a section and got None"]),
    ],
)
def test_wrong_override_names_source_key_and_expectation(override: str, parts: list[str]) -> None:
    message = sentence(overrides=(override,))
    assert f"override '{override[:100]}" in message  # What is longer is cut.
    for part in parts:
        assert part in message


def test_arguments_of_the_environment_have_any_name_and_are_kept() -> None:
    words = ("env.kwargs.map_name=8x8", "env.kwargs={is_slippery: false}", "env.kwargs.goal.place=[1, 2.5]")
    config = load(["gym_small"], words)
    assert config.env.kwargs == {"map_name": "8x8", "is_slippery": False, "goal": {"place": [1, 2.5]}}
    assert configuration.from_dict(configuration.to_dict(config)) == config
    other = configuration.override(config, ["env.kwargs.map_name=4x4"])
    assert list(configuration.differences(config, other)) == ["env.kwargs"]
    assert load(["gym_small"]).env.kwargs == {}
    assert "env.kwargs is ['a'], expected values by name" in sentence(overrides=("env.kwargs=[a]",))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=-1", "an integer, at least 0 and below 2147483648"),
        ("seed=2147483648", "an integer, at least 0 and below 2147483648"),
        ("env.count=0", "an integer, at least 1"),
        ("env.repeat=0", "an integer, at least 1"),
        ("replay.batch_size=0", "an integer, at least 1"),
        ("replay.batch_length=1", "an integer, at least 2"),
        ("replay.capacity=1039", "at least env.count * (replay.batch_length + 1) = 1040"),
        ("rssm.deter=0", "an integer, at least 1"),
        ("rssm.deter=129", "a multiple of rssm.blocks=8"),
        ("rssm.stoch=0", "an integer, at least 1"),
        ("rssm.blocks=0", "an integer, at least 1"),
        ("rssm.classes=1", "an integer, at least 2 and at most 65536"),
        ("rssm.classes=65537", "an integer, at least 2 and at most 65536"),
        ("rssm.prior_layers=-1", "an integer, at least 0"),
        ("rssm.unimix=1.0", "a finite number, at least 0 and below 1"),
        ("rssm.unimix=-0.1", "a finite number, at least 0 and below 1"),
        ("nets.units=0", "an integer, at least 1"),
        ("nets.kernel=4", "an odd number"),
        ("nets.image_bits=0", "an integer, at least 1 and at most 8"),
        ("nets.image_bits=9", "an integer, at least 1 and at most 8"),
        ("nets.bins=4", "an odd number"),
        ("nets.bins=1", "an integer, at least 3"),
        ("behavior.horizon=0", "an integer, at least 1"),
        ("behavior.starts=65", "0 to replay.batch_length=64"),
        ("behavior.starts=-1", "an integer, at least 0"),
        ("behavior.return_horizon=1.0", "a finite number, above 1"),
        ("behavior.return_lambda=1.5", "a finite number, at least 0 and at most 1"),
        ("behavior.entropy=nan", "a finite number, at least 0"),
        ("behavior.min_std=2.0", "at most behavior.max_std=1.0"),
        ("behavior.min_std=0.0", "a finite number, above 0"),
        ("loss.rep=-0.1", "a finite number, at least 0"),
        ("optimizer.lr=0.0", "a finite number, above 0"),
        ("optimizer.lr=nan", "a finite number, above 0"),
        ("optimizer.lr=inf", "a finite number, above 0"),
        ("optimizer.clip=-1.0", "a finite number, at least 0"),
        ("optimizer.beta1=1.0", "a finite number, at least 0 and below 1"),
        ("optimizer.warmup=-1", "an integer, at least 0"),
        ("optimizer.anneal=1000", "0, or more than optimizer.warmup=1000"),
        ("run.env_steps=0", "an integer, at least 1"),
        ("run.eval_episodes=-1", "an integer, at least 0"),
        ("run.train_ratio=0.0", "a finite number, above 0"),
        ("run.log_every=inf", "a finite number, at least 0"),
    ],
)
def test_value_out_of_range(override: str, expected: str) -> None:
    message = sentence(overrides=(override,))
    assert message.startswith(f"{override} cannot be used: expected {expected}")


def numbers() -> list[tuple[str, int | float]]:
    return [(key, value) for key, value in configuration.flatten(Config()) if type(value) in (int, float)]


@pytest.mark.parametrize(("key", "default"), numbers())
def test_every_number_has_a_lower_bound_and_is_finite(key: str, default: int | float) -> None:
    # Scores of an environment and entropies may be negative, and a camera of -1 is the usual one.
    low = {"run.score": -1e10, "env.dmc.camera": -2, "sac.target_entropy": -1001}.get(key, -1)
    values = [low] if isinstance(default, int) else [float(low), "nan", "inf", "-inf"]
    for value in values:
        assert sentence(overrides=(f"{key}={value}",)).startswith(f"{key}={value} cannot be used: expected ")


def bounds() -> list[tuple[str, str, Any]]:
    """Every number, or list of numbers, with every bound of its field, and that bound."""

    def has_numbers(value: Any) -> bool:
        items = value if isinstance(value, tuple) else (value,)
        return len(items) > 0 and all(type(item) in (int, float) for item in items)

    leaves = [(key, field) for key, field, value in fields.walk(Config()) if has_numbers(value)]
    return [(key, *bound) for key, field in leaves for bound in field.metadata["bounds"].items()]


def around(word: str, limit: Any, whole: bool) -> tuple[Any, Any]:
    """The last value that a bound allows, and the first that it does not."""
    up = word in ("at_least", "above")
    inside: float
    outside: float
    if whole:
        inside, outside = int(limit) + (1 if up else -1), int(limit) - (1 if up else -1)
    else:
        inside, outside = (math.nextafter(limit, math.inf if rising else -math.inf) for rising in (up, not up))
    return (limit, outside) if word.startswith("at_") else (inside, limit)


@pytest.mark.parametrize(("key", "word", "limit"), bounds())
def test_every_bound_is_where_its_field_says(key: str, word: str, limit: Any) -> None:
    field, default = next((field, value) for name, field, value in fields.walk(Config()) if name == key)
    listed = isinstance(default, tuple)
    allowed, refused = around(word, limit, whole=field.type is not float)
    text = (lambda x: f"[{x!r}, {x!r}]") if listed else repr
    message = sentence(overrides=(f"{key}={text(refused)}",))
    assert message.startswith(f"{key}=")
    assert f"cannot be used: expected {fields.describe_field(field)}." in message
    try:
        found = dict(configuration.flatten(load(overrides=[f"{key}={text(allowed)}"])))[key]
    except ConfigError as error:  # Another rule, about several keys, may still refuse it.
        refusal = str(error)
    else:
        refusal = ""
        assert found == (type(found)([allowed, allowed]) if listed else allowed)
    assert fields.describe_field(field) not in refusal


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("behavior.starts=0", 0),
        ("behavior.return_lambda=1.0", 1.0),
        ("nets.reward_layers=0", 0),
        ("optimizer.warmup=0", 0),
        ("optimizer.anneal=1001", 1001),
        ("optimizer.clip=0.0", 0.0),
        ("run.eval_episodes=0", 0),
        ("run.log_every=0.0", 0.0),
        ("seed=2147483647", 2147483647),
    ],
)
def test_bounds_belong_to_the_range_where_they_mean_something(override: str, value: object) -> None:
    assert dict(configuration.flatten(load(overrides=[override])))[override.partition("=")[0]] == value


@pytest.mark.parametrize("suite", ["atari", "dmc", "minigrid"])
@pytest.mark.parametrize("size", ["[64]", "[64,64,3]", "[]"])
def test_images_have_two_sides(suite: str, size: str) -> None:
    message = sentence(overrides=(f"env.{suite}.size={size}",))
    assert message.endswith("expected two numbers, height and width.")


def test_mults() -> None:
    assert sentence(overrides=("nets.mults=[]",)).endswith("expected at least one multiplier.")
    assert sentence(overrides=("nets.mults=[2,0]",)).endswith(
        "expected a list of integers, each at least 1 and at most 1024."
    )
    message = sentence(overrides=("nets.mults=[1,2,4]", "nets.convolutions=valid"))
    assert message.endswith("expected four multipliers with nets.convolutions=valid.")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("Config(logdir=pathlib.Path('runs'))", "logdir=runs cannot be used: expected text."),
        ("Config(seed=1.0)", "seed=1.0 cannot be used: expected an integer, "),
        ("Config(env=3)", "env=3 cannot be used: expected EnvConfig."),
        ("Config(logger=LoggerConfig(wandb=2))", "logger.wandb=2 cannot be used: expected true or false."),
        ("Config(optimizer=OptimizerConfig(lr=0))", "optimizer.lr=0 cannot be used: expected a finite number, "),
    ],
)
def test_a_config_built_in_python_is_checked_as_well(expression: str, message: str) -> None:
    # In a separate process, where no annotation is checked before the config checks itself.
    code = f"import pathlib\nfrom dreamer.config import *\ntry: {expression}\nexcept ConfigError as e: print(e)"
    command, root = [sys.executable, "-c", code], pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(message)


def test_capacity_may_hold_exactly_one_sequence_per_environment() -> None:
    assert load(overrides=["replay.capacity=1040"]).replay.capacity == 1040


def test_override_without_equals() -> None:
    message = sentence(overrides=("seed",))
    assert "'seed'" in message
    assert "key=value" in message


def test_override_that_is_not_yaml() -> None:
    message = sentence(overrides=("seed=[1",))
    assert message.startswith("The value in 'seed=[1' is not valid YAML: expected ',' or ']'")
    assert message.endswith("in line 1, column 3.")
    assert "\n" not in message
    assert "month must be in 1..12" in sentence(overrides=("seed=2024-13-01",))


@pytest.mark.parametrize(
    "override", ["seed=${oc.env:HOME}", "task=${logdir}", "nets.mults=${x}", "env={count: '${x}'}"]
)
def test_interpolation_is_refused(override: str) -> None:
    assert "interpolation is not allowed" in sentence(overrides=(override,))


def test_unknown_preset_names_the_nearest_and_lists_all() -> None:
    message = sentence("sise/12m")
    assert "no preset 'sise/12m'" in message
    assert "Did you mean 'size/12m'?" in message
    assert all(name in message for name in PRESETS)


def test_a_preset_may_be_a_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.yaml").write_text("base: cartpole\nseed: 3\n")
    (tmp_path / "presets" / "other.yml").write_text("base: mine.yaml\ntask: probe_catch\n")
    mine = configuration.load(["cartpole"], ["seed=3"])
    assert configuration.load([str(tmp_path / "presets" / "mine.yaml")]) == mine
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configuration.load(["presets/mine.yaml"]) == configuration.load(["~/presets/mine.yaml"]) == mine
    # Its base is looked for next to it.
    assert configuration.load(["presets/other.yml"]) == configuration.override(mine, ["task=probe_catch"])
    assert configuration.load(["presets/mine.yaml", "size/1m"]).rssm.deter == 512


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cartpole.yaml", ["There is no file 'cartpole.yaml'", "Did you mean 'cartpole'?"]),
        ("configs/size/12m.yaml", ["There is no file", "Did you mean 'size/12m'?"]),
        ("bad.yaml", ["preset bad.yaml", "no key 'sed'"]),
        ("list.yaml", ["holds a list, expected a mapping"]),
        (".", ["There is no preset '.'"]),
    ],
)
def test_a_file_that_is_no_preset_is_refused(
    name: str, parts: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.yaml").write_text("sed: 3\n")
    (tmp_path / "list.yaml").write_text("[1, 2]\n")
    monkeypatch.chdir(tmp_path)
    message = sentence(name)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lr", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("--learning-rate", "optimizer.lr"),
        ("batch_size", "replay.batch_size"),
        ("--total-timesteps", "run.env_steps"),
        ("--num_envs", "env.count"),
        ("env.id", "task"),
        ("run.steps", "run.env_steps"),
        ("+run.env_steps", "run.env_steps"),
        ("train_ration", "run.train_ratio"),
        ("planner.horizont", "planner.horizon"),
        ("horizon", "behavior.horizon"),
        ("nets.unit", "nets.units"),
    ],
)
def test_keys_of_other_programs_lead_to_ours(name: str, expected: str) -> None:
    assert configuration.nearest_keys(name)[0] == expected


@pytest.mark.parametrize("name", ["", "--fast", "zzz", "exp", "x.y"])
def test_no_key_is_guessed_wildly(name: str) -> None:
    assert configuration.nearest_keys(name) == []


def test_synonyms_are_no_keys_themselves_and_lead_to_keys() -> None:
    keys = {key for key, _ in configuration.flatten(Config())}
    assert set(loading._SYNONYMS.values()) <= keys
    assert not set(loading._SYNONYMS) & {key.rpartition(".")[2] for key in keys}


def test_unknown_preset_without_a_near_one() -> None:
    assert "Did you mean" not in sentence("qqqqqqqq")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: [1\n", ["'bad'", "not valid YAML"]),
        ("- seed\n", ["'bad'", "list", "expected a mapping"]),
        ("sed: 1\n", ["preset bad", "Did you mean 'seed'?"]),
        ("seed: x\n", ["preset bad", "seed is 'x'", "an integer"]),
        ("task: 2024-01-01\n", ["preset bad", "task is datetime.date(2024, 1, 1)", "expected text"]),
        ("logger: {wandb: 2}\n", ["preset bad", "logger.wandb is 2", "true or false"]),
        ("logdir: ${task}\n", ["preset bad", "interpolation is not allowed"]),
        ("base: bad\n", ["'bad' is its own base: bad -> bad"]),
        ("base: [small]\n", ["'bad' has the base ['small']", "expected the name of one preset"]),
        ("base:\n", ["'bad' has the base None", "expected the name of one preset"]),
        ("base: nothing\n", ["There is no preset 'nothing'"]),
    ],
)
def test_broken_preset(preset_files: pathlib.Path, text: str, parts: list[str]) -> None:
    (preset_files / "bad.yaml").write_text(text)
    message = sentence("bad")
    for part in parts:
        assert part in message
    assert "\n" not in message


# Saved and read back


def changed() -> Config:
    return load(["size/tiny"], ["seed=3", "nets.mults=[2,3]", "optimizer.lr=1e-20", "logdir=007", "logger.wandb=true"])


def test_round_trip_through_yaml(tmp_path: pathlib.Path) -> None:
    config = changed()
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(config))
    assert configuration.load_yaml(tmp_path / "config.yaml") == config
    assert configuration.load_yaml(str(tmp_path / "config.yaml")) == config


def test_to_dict_is_plain_and_complete() -> None:
    config = changed()
    values = configuration.to_dict(config)
    assert values["nets"]["mults"] == [2, 3]
    assert type(values["rssm"]) is dict
    assert set(values) == {field.name for field in dataclasses.fields(Config)}
    assert configuration.from_dict(values) == config


def test_from_dict_fills_in_defaults_and_refuses_unknown_keys() -> None:
    assert configuration.from_dict({}) == Config()
    with pytest.raises(ConfigError, match=r"saved config.*'sed'.*'seed'"):
        configuration.from_dict({"sed": 1})
    with pytest.raises(ConfigError, match=re.escape("env.count=0 cannot be used")):
        configuration.from_dict({"env": {"count": 0}})


def test_load_yaml_refuses_what_is_no_config(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match=r"config\.yaml is not a readable config: .*No such file"):
        configuration.load_yaml(path)
    path.write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is not a readable config: .* in line 2, column 1\.$"):
        configuration.load_yaml(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"config\.yaml is not a readable config: .*decode"):
        configuration.load_yaml(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match=r"config\.yaml holds a list, expected a mapping"):
        configuration.load_yaml(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sed: 1", "Did you mean 'seed'?"),
        ("seed: x", "seed is 'x', expected an integer"),
        ("env: {count: 0}", "env.count=0 cannot be used: expected an integer, at least 1"),
    ],
)
def test_load_yaml_names_the_file_and_what_is_wrong_in_it(tmp_path: pathlib.Path, text: str, part: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(part)) as caught:
        configuration.load_yaml(path)
    assert str(caught.value).startswith(f"{path} is not a usable config. ")


def test_config_is_frozen_and_hashable() -> None:
    config = changed()
    assert hash(config) == hash(changed())
    assert {config: 1}[changed()] == 1
    assert config != Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rssm.deter = 4  # type: ignore[misc]


def test_differences() -> None:
    new = load(overrides=["seed=3", "rssm.deter=64"])
    assert configuration.differences(Config(), new) == {"seed": (0, 3), "rssm.deter": (8192, 64)}
    assert configuration.differences(new, new) == {}


def test_a_key_may_be_a_word_of_python(tmp_path: pathlib.Path) -> None:
    config = load([], ["load.from=runs/a_", "load.only=encoder"])
    assert config.load.from_ == "runs/a_"
    assert configuration.to_dict(config)["load"] == {"from": "runs/a_", "only": "encoder"}
    assert configuration.from_dict(configuration.to_dict(config)) == config
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(config))
    assert "\n  from: runs/a_\n" in configuration.to_yaml(config)
    assert configuration.load_yaml(tmp_path / "config.yaml") == config
    assert configuration.override(config, ["load={from: b, only: actor}"]).load.from_ == "b"
    assert configuration.differences(Config(), config)["load.from"] == ("", "runs/a_")
    assert dict(configuration.flatten(config))["load.from"] == "runs/a_" and "  load.from " in configuration.reference()


def test_reference_describes_every_key() -> None:
    text = configuration.reference()
    lines = text.splitlines()
    for key, value in configuration.flatten(Config()):
        found = [index for index, line in enumerate(lines) if line.split()[:1] == [key]]
        assert len(found) == 1, key
        shown = f"'{value}'" if isinstance(value, str) else str(value)
        assert f"= {shown}" in lines[found[0]]
        assert len(lines[found[0] + 1].strip()) > 10, f"{key} has no help line"
    assert "[replayed steps per agent step]" in text
    assert "Literal['sync', 'async']" in text


def test_every_group_has_a_docstring_and_a_help_line() -> None:
    for field in dataclasses.fields(Config):
        assert field.metadata["help"]
        if dataclasses.is_dataclass(field.type):
            assert isinstance(field.type, type)
            assert not (field.type.__doc__ or "").startswith(field.type.__name__), "dataclass signature, no docstring"


def test_presets_are_found_beside_the_package_or_inside_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "dreamer"
    (tmp_path / "configs").mkdir()
    package.mkdir()
    (package / "config").mkdir()
    monkeypatch.setattr(loading, "__file__", str(package / "config" / "loading.py"))
    assert configuration.preset_directory() == tmp_path / "configs"
    (package / "configs").mkdir()
    assert configuration.preset_directory() == package / "configs"


NUMERIC = {key: field for key, field in leaves().items() if field.type in (int, float, tuple[int, ...])}


@pytest.mark.parametrize("key", NUMERIC)
def test_every_number_has_bounds_that_are_finite(key: str) -> None:
    field = NUMERIC[key]
    bounds = field.metadata["bounds"]
    assert len(bounds.keys() & {"at_least", "above"}) == 1
    assert len(bounds.keys() & {"at_most", "below"}) == 1
    # A learning rate may be absurd: what a run does then is for the guard to say.
    limit = 1e29 if key.startswith("optimizer.") and key.endswith("lr") else 10**12
    assert all(abs(bound) <= limit for bound in bounds.values())
    listed = "[{}]" if field.type == tuple[int, ...] else "{}"
    for value in ("1" + "0" * 30, "-1" + "0" * 30, "1.0e+30", ".inf", "9" * 5000):
        message = sentence(overrides=(f"{key}={listed.format(value)}",))
        assert key in message and "\n" not in message and len(message) < 600
