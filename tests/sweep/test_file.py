"""Sweep files: what they mean, and the errors for those that cannot be used."""

import os
import pathlib

import numpy as np
import pytest
import yaml

from dreamer import config as configs
from dreamer import train as training
from dreamer.config import ConfigError
from dreamer.sweep import file
from dreamer.sweep.__main__ import all_trials, main
from dreamer.sweep.plan import SweepPlan

ROOT = pathlib.Path(__file__).resolve().parents[2]


def read(tmp_path: pathlib.Path, text: str) -> SweepPlan:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return file.read(path, tmp_path / "runs")


def test_a_grid_is_every_combination_with_every_seed(tmp_path):
    plan = read(
        tmp_path,
        "presets: [cartpole]\noverrides: {run: {env_steps: 100}, replay.batch_size: 4}\n"
        "grid: {optimizer.lr: [1e-4, 0.001], behavior.horizon: [5, 15]}\nseeds: [3, 4]",
    )
    trials = all_trials(plan)
    assert [trial.name for trial in trials[:3]] == [
        "lr_0.0001-horizon_5-seed_3",
        "lr_0.0001-horizon_15-seed_3",
        "lr_0.001-horizon_5-seed_3",
    ]
    assert len(trials) == 8
    assert {trial.seed for trial in trials[4:]} == {4}
    assert trials[0].command() == (
        "python -m dreamer.train --config cartpole run.env_steps=100 replay.batch_size=4 optimizer.lr=0.0001 "
        f"behavior.horizon=5 seed=3 logdir={tmp_path}/runs/lr_0.0001-horizon_5-seed_3"
    )


def test_the_command_of_a_trial_gives_its_config(tmp_path):
    plan = read(
        tmp_path,
        "grid: {presets: [size/1m, [cartpole, size/tiny]], optimizer.lr: [4e-4], nets.mults: [[2, 3]], env.check: [no],"
        " env.workers: [async], load.from: [runs/other]}",
    )
    trials = all_trials(plan)
    for trial in trials:
        assert training.parse(trial.words) == trial.config
    assert trials[0].config.nets.mults == (2, 3)
    assert trials[1].config.task == "gym_CartPole-v1"


def test_arguments_of_the_environment_are_keys_of_any_name(tmp_path):
    plan = read(
        tmp_path,
        "presets: [gym_small]\noverrides: {env: {kwargs: {size: 4}}}\n"
        'grid: {env.kwargs.map_name: ["4x4", "007"], env.kwargs.map.holes: [1.5]}',
    )
    trials = all_trials(plan)
    for trial in trials:
        assert training.parse(trial.words) == trial.config
    arguments = [trial.config.env.kwargs for trial in trials[:: len(trials) // 2]]
    assert arguments == [{"size": 4, "map_name": name, "map": {"holes": 1.5}} for name in ("4x4", "007")]


def test_values_that_only_fit_together_are_set_together(tmp_path):
    plan = read(tmp_path, "presets: [cartpole]\ngrid: {rssm.deter: [9], rssm.blocks: [3]}")
    (trial,) = all_trials(plan)
    assert (trial.config.rssm.deter, trial.config.rssm.blocks) == (9, 3)


def test_random_values_stay_within_their_bounds_and_more_trials_leave_them_as_they_are(tmp_path):
    text = (
        "presets: [cartpole]\nrandom: {optimizer.lr: {log_uniform: [1e-5, 1e-2]}, loss.rep: {uniform: [0.1, 0.2]},\n"
        " behavior.horizon: {int_uniform: [1, 3]}, optimizer.warmup: {int_log_uniform: [1, 1000]},\n"
        " run.train_ratio: {choice: [32, 64]}}\ntrials: "
    )
    few = read(tmp_path, f"{text}3")
    many = read(tmp_path, f"{text}80")
    assert many.points()[:3] == few.points()
    columns = {key: [point[key] for point in many.points()] for key in many.keys}
    assert 1e-5 <= min(columns["optimizer.lr"]) < max(columns["optimizer.lr"]) <= 1e-2
    # Half of the draws on a logarithmic scale lie below its middle.
    assert 25 < sum(lr < 10**-3.5 for lr in columns["optimizer.lr"]) < 55
    assert 0.1 <= min(columns["loss.rep"]) < max(columns["loss.rep"]) <= 0.2
    assert np.std(columns["loss.rep"]) > 0.02
    assert set(columns["behavior.horizon"]) == {1, 2, 3}
    assert {type(value) for value in columns["optimizer.warmup"]} == {int}
    assert np.median(columns["optimizer.warmup"]) < 99
    assert set(columns["run.train_ratio"]) == {32.0, 64.0}


def test_each_draw_is_tried_at_every_point_of_the_grid(tmp_path):
    plan = read(
        tmp_path,
        "presets: [cartpole]\nrandom: {optimizer.lr: {uniform: [1e-4, 1e-3]}}\ntrials: 2\ngrid: {loss.rep: [0, 1]}",
    )
    first, second, third, fourth = plan.points()
    assert first["optimizer.lr"] == second["optimizer.lr"] != third["optimizer.lr"] == fourth["optimizer.lr"]
    assert [point["loss.rep"] for point in plan.points()] == [0, 1, 0, 1]
    assert [trial.name[:4] for trial in all_trials(plan)] == ["000-", "001-", "002-", "003-"]


def grid(values: str) -> str:
    return f"presets: [cartpole]\ngrid: {{{values}}}"


GRID = "presets: [cartpole]\ngrid: {optimizer.lr: [1e-4]}\n"
RANDOM = "presets: [cartpole]\ntrials: 2\nrandom: {optimizer.lr: {log_uniform: [1e-4, 1e-3]}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds nothing, expected a mapping with 'grid' or 'random'"),
        ("[1, 2]", "it holds a list, expected a mapping"),
        ("grid: {a: [1", r"is not a readable sweep file: .*line 1"),
        ("!!python/object/apply:os.getcwd []", "is not a readable sweep file: could not determine a constructor"),
        ("presets: [cartpole]", "it has nothing to try: give values under 'grid', or ranges under 'random'"),
        (GRID + "seed: [1]", "there is no 'seed' in a sweep file. Did you mean 'seeds'?"),
        ("grid: {optimizer.lr: [1e-4]}", "'presets' is missing: name those to start from"),
        ("presets: [cartpol]\ngrid: {optimizer.lr: [1e-4]}", "no preset 'cartpol'. Did you mean 'cartpole'?"),
        ("presets: [7]\ngrid: {optimizer.lr: [1e-4]}", "'presets' has 7, expected names"),
        ("presets: [cartpole]\ngrid: [1]", r"'grid' is \[1\], expected a mapping"),
        (grid("optimizer.lrr: [1]"), "not a config key. Did you mean 'optimizer.lr'?"),
        (grid("lr: [1]"), "'lr', which is not a config key. Did you mean 'optimizer.lr'?"),
        (grid("optimizer.lr: []"), "'grid' has no values for optimizer.lr"),
        (grid("optimizer.lr: 1e-4"), r"expected a list of values, as in \[1e-4\]"),
        (
            "presets: [cartpole]\ngrid: {optimizer.lr: [fast]}",
            "optimizer.lr=fast cannot be used: expected a finite number",
        ),
        (grid("optimizer.lr: [-1.0]"), "optimizer.lr=-1.0 cannot be used: .*above 0"),
        (
            "presets: [cartpole]\ngrid: {behavior.horizon: [1.5]}",
            "behavior.horizon=1.5 cannot be used: expected an int",
        ),
        (grid("env.check: [1]"), "env.check=1 cannot be used: expected true or false"),
        (
            "presets: [cartpole]\ngrid: {env.workers: [many]}",
            "env.workers=many cannot be used: expected one of sync, async",
        ),
        (grid("optimizer.lr: [{a: 1}]"), "expected a value: name every key in full"),
        (grid("task: ['${seed}']"), "interpolation is not allowed"),
        (grid("rssm.deter: [13]"), "rssm.deter=13 cannot be used: expected a multiple"),
        (grid("seed: [1]"), "seed, which a sweep sets itself. List seeds under 'seeds'"),
        (GRID + "overrides: {logdir: x}", "logdir, which a sweep sets itself. Every trial gets a directory"),
        (GRID + "overrides: {population: {seeds: 3}}", "population.seeds, which a sweep sets itself"),
        (GRID + "overrides: {run.env_step: 3}", "'overrides' has 'run.env_step', .*Did you mean 'run.env_steps'?"),
        (GRID + "overrides: {run.env_steps: many}", "run.env_steps=many cannot be used: expected an integer"),
        (GRID + "seeds: 3", "'seeds' is 3, expected a list"),
        (GRID + "seeds: []", r"'seeds' is \[\], expected whole numbers"),
        (GRID + "seeds: [1, -1]", "'seeds' is .*-1.*, expected whole numbers from 0 on"),
        (GRID + "seeds: [1, 1]", "two trials would have the logdir .*lr_0.0001-seed_1, .*give every value .* once"),
        (
            "presets: [cartpole]\ngrid: {optimizer.lr: [1e-4, 0.0001]}",
            "two trials .*lr_0.0001-seed_0",
        ),
        (grid("load.from: [a/b, a b]"), "two trials would have the logdir"),
        (GRID + "score: evall", "'score' is 'evall', expected eval, last, best, or a metric.* Did you mean 'eval'?"),
        (GRID + "overrides: {run.eval_episodes: 0}", "'score' is eval, but run.eval_episodes=0"),
        (GRID + "direction: up", "'direction' is 'up', expected one of maximize, minimize"),
        (GRID + "search: optuna", "'search' is optuna, which needs keys under 'random'"),
        (GRID + "trials: 3", "'trials' counts draws from 'random', and there is none"),
        (GRID + "retries: some", "'retries' is 'some', expected a whole number"),
        (GRID + "retries: -1", "at least 0"),
        (RANDOM + "search: grid", "'search' is grid, which needs no keys under 'random'"),
        (RANDOM + "search: bayes", "'search' is 'bayes', expected one of grid, random, optuna"),
        (RANDOM.replace("2", "0"), "'trials' is 0, expected how many settings are drawn"),
        (RANDOM + "grid: {optimizer.lr: [1]}", "is under 'grid' and under 'random': name it once"),
        (RANDOM + "search: optuna\ngrid: {loss.rep: [1]}", "Optuna chooses all values itself"),
        (RANDOM.replace("log_uniform", "loguniform"), "expected one of uniform, .* Did you mean 'log_uniform'?"),
        (RANDOM.replace("{log_uniform: [1e-4, 1e-3]}", "[1e-4]"), r"expected one of uniform, .*as in \{log_uniform"),
        (RANDOM.replace("[1e-4, 1e-3]", "3"), "'random' has log_uniform: 3 for optimizer.lr, expected a list"),
        (RANDOM.replace("[1e-4, 1e-3]", "[1e-3, 1e-4]"), r"expected \[lowest, highest\], both above 0"),
        (
            RANDOM.replace("optimizer.lr: {log_uniform: [1e-4", "loss.rep: {log_uniform: [0"),
            r"expected \[lowest, highest\], both above 0",
        ),
        (RANDOM.replace("[1e-4, 1e-3]", "[low, 1]"), "optimizer.lr=low cannot be used: expected a finite number"),
        (RANDOM.replace("log_uniform", "int_uniform"), "which is made for whole numbers"),
        (RANDOM.replace("optimizer.lr", "run.env_steps").replace("1e-", ""), "which is made for real numbers"),
        (
            RANDOM.replace("{log_uniform: [1e-4, 1e-3]}", "{uniform: [-1, 1]}") + "search: optuna",
            "optimizer.lr=-1.0 cannot",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, text)
    assert "sweep.yaml" in str(error.value)
    assert "\n" not in str(error.value)


MANY = f"[{', '.join(f'{n}.0e-6' for n in range(1, 1001))}]"

HOSTILE = {
    "a grid of billions": (
        f"presets: [cartpole]\ngrid: {{optimizer.lr: {MANY}, loss.rep: {MANY}, loss.dyn: {MANY}}}",
        "1,000,000,000 trials",
    ),
    "a billion draws": (
        RANDOM.replace("trials: 2", "trials: 1000000000"),
        "1,000,000,000 trials, expected at most 10,000",
    ),
    "more draws than have a name": (
        RANDOM.replace("trials: 2", "trials: 0x" + "f" * 9000),
        "a number of 10,8.. digits",
    ),
    "a seed of the search of thousands of digits": (
        RANDOM + "search_seed: 0x" + "f" * 9000,
        "'search_seed' is a number of",
    ),
    "more retries than anybody waits for": (
        GRID + "retries: 1000000000",
        "'retries' is 1000000000, expected at least 0 and",
    ),
    "a thousand seeds that are none": (GRID + f"seeds: {MANY}", "expected whole numbers from 0 on"),
    "a layer count of 31 digits": (
        grid("nets.actor_layers: [1" + "0" * 30 + "]"),
        "expected an integer, at least 0 and at most 256",
    ),
    "brackets": ("[" * 20_000, "more than 50 levels"),
    "itself": ("grid: &a {b: *a}", "contains itself"),
    "a number as a key": (GRID + "7: 8", "has a key in line 3 that is not text"),
    "more than anybody writes": ("presets: [cartpole]\n" + "# \n" * 200_000, "too large"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_asks_for_too_much_is_refused_before_it_is_listed(tmp_path, case):
    text, message = HOSTILE[case]
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 + len(str(tmp_path))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "place", ["sweep.json", "optuna.jsonl", "table.txt", "curves.png", "lr_0.0001-seed_0/output.txt"]
)
@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_a_sweep_writes_nothing_through_what_is_no_file(tmp_path, place, kind, capsys):
    (tmp_path / "sweep.yaml").write_text(GRID)
    path = tmp_path / "runs" / place
    path.parent.mkdir(parents=True)
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere")
    assert main([str(tmp_path / "sweep.yaml"), "--logdir", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and f"{path} is {kind}, expected a file or nothing" in said
    assert not (tmp_path / "elsewhere").exists()


def test_the_command_prints_the_error_to_standard_error(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path}/none.yaml is not a readable sweep file: ")
    assert main(["cartpol_lr"]) == 2
    assert "Did you mean 'cartpole_lr'?" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_can_be_run_and_begin_with_their_command(path, capsys):
    plan = file.read(pathlib.Path(path.stem))
    assert plan.keys
    assert path.read_text().splitlines()[0].endswith(f": python -m dreamer.sweep {path.stem}")
    assert f"sweeps/{path.stem}" not in configs.presets()
    assert main([path.stem, "--print"]) == (2 if plan.search == "optuna" else 0)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(plan.points()) * len(plan.seeds)


@pytest.mark.slow
def test_the_file_for_weights_and_biases_has_the_same_keys(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "presets: [cartpole]\noverrides: {env.count: 2}\nseeds: [0, 1]\ntrials: 5\ngrid: {nets.mults: [[2, 3]]}\n"
        "random: {optimizer.lr: {log_uniform: [1e-4, 1e-3]}, optimizer.warmup: {int_log_uniform: [1, 10]}}"
    )
    assert main([str(path), "--wandb", str(tmp_path / "wandb.yaml")]) == 0
    written = yaml.safe_load((tmp_path / "wandb.yaml").read_text())
    assert written["method"] == "random"
    assert written["metric"] == {"name": "eval/mean", "goal": "maximize"}
    assert written["run_cap"] == 10
    assert written["parameters"] == {
        "nets.mults": {"values": ["[2, 3]"]},
        "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-3},
        "optimizer.warmup": {"distribution": "q_log_uniform_values", "min": 1, "max": 10, "q": 1},
        "seed": {"values": [0, 1]},
    }
    # The client's agent makes a command of it that our parser accepts.
    from wandb.sdk.launch.sweeps import utils

    chosen = {"nets.mults": "[2, 3]", "optimizer.lr": 0.00016, "optimizer.warmup": 3, "seed": 1}
    given = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    words = utils.create_sweep_command(written["command"])
    assert words[:4] == ["${env}", "${interpreter}", "-m", "dreamer.train"]
    assert words[-1] == "${args_no_hyphens}"
    config = training.parse([*words[4:-1], *given["args_no_hyphens"]])
    assert config is not None
    assert (config.nets.mults, config.optimizer.lr, config.optimizer.warmup, config.seed) == ((2, 3), 0.00016, 3, 1)
    assert config.logger.wandb
    assert config.env.count == 2
