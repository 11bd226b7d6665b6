"""Sweeps of real runs, and on Ray.

The test of Ray is for hand, because Ray is too large for the extra `dev`: ``pip install -e '.[dev,ray]'``, and then
``python -m pytest tests/sweep/test_real.py -k ray``.
"""

import json
import pathlib
import sys

import pytest

from dreamer.checkpoints import exists
from dreamer.sweep import file
from dreamer.sweep.__main__ import main, sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]

REAL = """
presets: [size/tiny]
overrides:
  task: probe_action
  env.count: 2
  rssm: {deter: 16, hidden: 8, stoch: 3, classes: 4, blocks: 2, prior_layers: 1}
  nets: {units: 8, depth: 2, encoder_layers: 1, decoder_layers: 1, actor_layers: 1, critic_layers: 1, bins: 41}
  behavior.horizon: 3
  replay: {batch_size: 2, batch_length: 4, capacity: 400}
  run: {env_steps: 60, train_ratio: 4, eval_episodes: 2, log_every: 0}
grid: {optimizer.lr: [1e-4, 1e-3]}
score: last
"""


@pytest.mark.slow
def test_a_sweep_of_real_runs_trains_reports_and_can_change_its_score_later(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text(REAL)
    assert main([str(path), "--jobs", "2"]) == 0, (tmp_path / "runs/sweep/table.txt").read_text()
    logdir = tmp_path / "runs/sweep"
    result = json.loads((logdir / "results.json").read_text())
    trials = [trial for setting in result["settings"] for trial in setting["trials"]]
    assert result["states"] == {"done": 2}
    assert [trial["exits"] for trial in trials] == [[0], [0]]
    assert all(exists(pathlib.Path(trial["logdir"])) for trial in trials)
    assert (logdir / "curves.png").is_file()
    assert (logdir / "scores.png").is_file()
    path.write_text(REAL.replace("score: last", "score: eval"))
    (logdir / "sweep.json").unlink()
    assert main([str(path), "--report"]) == 0
    assert "sweep: eval, maximized" in capsys.readouterr().out
    # Nothing is run again: without sweep.json, the runs themselves show that they are done.
    assert main([str(path)]) == 0
    assert "2 of them done before" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_runs_the_trials_and_retries_them(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray: pip install -e '.[ray]'")
    monkeypatch.setenv("FAKE", json.dumps({"statuses": {"lr_0.001-seed_0": [-9, 0], "lr_0.01-seed_0": [2]}}))
    monkeypatch.chdir(ROOT)
    (tmp_path / "sweep.yaml").write_text("presets: [cartpole]\ngrid: {optimizer.lr: [1e-3, 1e-2]}")
    plan = file.read(tmp_path / "sweep.yaml", tmp_path / "runs")
    command = [sys.executable, str(pathlib.Path(__file__).with_name("fake_train.py"))]
    assert sweep(plan, 2, command=command, ray={"address": None, "cpus": 1.0, "gpus": 0.0}) == 1
    best, failed = json.loads((plan.logdir / "results.json").read_text())["settings"]
    assert best["mean"] == 0.0
    assert best["trials"][0]["exits"] == [-9, 0]
    assert failed["trials"][0]["exits"] == [2]
    assert failed["trials"][0]["state"] == "failed"
