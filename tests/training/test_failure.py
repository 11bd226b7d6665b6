"""What happens to a run whose updates are not finite, from a single bad batch to one that cannot continue."""

import json
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import checkpoints, failure
from dreamer import train as training
from dreamer.logs import averages
from dreamer.logs.logger import read_metrics
from dreamer.replay import Ticket
from dreamer.training import host as host_run
from dreamer.training.failure import Skip, TrainingFailed
from dreamer.training.learner import Learner
from dreamer.types import Parts, TrainState
from dreamer.world_models.rssm import StoredLatent
from tests.small import OVERRIDES, same_tree, small_batch

# ----------------------------------------------------------------------------------------------- the learner, scripted


class Script:
    """Stands for agent, replay and train ratio: as many updates as asked for, of which some are skipped."""

    def __init__(self, in_row):
        self.in_row, self.written, self.drawn = list(in_row), [], 0
        self.placement: Any = types.SimpleNamespace(fetch_rows=lambda latents: latents)
        self.ready = True
        self.state = TrainState(jnp.int32(0), Parts(), Parts(), jnp.int32(0), ())

    def updates_due(self, steps, ready):
        return steps

    def sample(self):
        self.drawn += 1
        return small_batch(self.drawn), Ticket(np.array([self.drawn]), np.array([0]))

    def update(self, batch):
        number = self.in_row.pop(0)
        latents = StoredLatent(np.full((1, 2), self.drawn, np.float32), np.zeros((1, 2), np.uint8))
        losses = {f"loss/{name}": 0.0 for name in (*"abcdefg", "seven")}
        return latents, losses | {averages.IN_ROW: np.int32(number), averages.BAD: np.int32(7 if number else -1)}

    def update_stored(self, ticket, latents):
        self.written.append((int(ticket.env[0]), float(latents.deter[0, 0])))

    def commit(self):
        return {"fields": {}}


def scripted(*in_row) -> tuple[Any, Any]:
    script = Script(in_row)
    learner = object.__new__(Learner)  # Without the check of types, which would want the real ones.
    parts = {"agent": script, "replay": script, "ratio": script, "updates": 0, "_pending": None}
    vars(learner).update(parts, skip=None, on_skip=lambda skip: None)
    return learner, script


def test_latents_of_skipped_updates_are_not_written_back():
    learner, script = scripted(0, 1, 2, 0, 0)
    told: list[Skip] = []
    learner.on_skip = told.append
    for number in range(5):
        list(learner.learn(1))
        # What an update did is known when the next one was started.
        assert (learner.skip is not None) == (number in (2, 3)), number
    assert script.written == [(1, 1.0), (4, 4.0)]
    learner.settle()
    assert script.written == [(1, 1.0), (4, 4.0), (5, 5.0)]
    assert [(skip.update, skip.in_row, skip.tensor) for skip in told] == [
        (1, 1, "losses.seven"),
        (2, 2, "losses.seven"),
    ]
    assert same_tree(told[0].batch, small_batch(2))


def test_latents_of_a_skipped_update_are_not_saved():
    learner, _ = scripted(0, 1)
    list(learner.learn(1))
    assert "pending/deter" in learner.replay_state()["fields"]
    list(learner.learn(1))
    assert learner.replay_state()["fields"] == {}


def test_an_update_that_leaves_replay_alone_has_nothing_to_save():
    learner, script = scripted(0)
    update = script.update
    script.update = lambda batch: ((), update(batch)[1])
    list(learner.learn(1))
    assert learner.replay_state()["fields"] == {}


def refuse(learner, most, monkeypatch):
    """Ask a run whether it ends; if so, the save under way must be complete before the report looks for checkpoints."""
    saved: list[dict[str, bool]] = []

    def report(logdir, agent, skip, hosts):
        assert saved == [{"wait": True}]
        return TrainingFailed(str(skip.update))

    monkeypatch.setattr(host_run, "report_failure", report)
    run: Any = types.SimpleNamespace(learner=learner, logdir=None, agent=None, hosts=None)
    run._collect_save = lambda **how: saved.append(how)
    run.config = types.SimpleNamespace(run=types.SimpleNamespace(max_skipped=most))
    host_run.HostRun._refuse_failure(run)


def test_a_run_ends_when_the_newest_update_was_skipped_too_often(monkeypatch):
    learner, _ = scripted(1, 2, 3)
    for _ in range(2):
        list(learner.learn(1))
        refuse(learner, 2, monkeypatch)  # Of the second skip, nothing is known yet.
    list(learner.learn(1))
    with pytest.raises(TrainingFailed, match="2"):
        refuse(learner, 2, monkeypatch)


def test_a_run_continues_when_the_update_after_was_good(monkeypatch):
    learner, script = scripted(1, 2, 0)
    for _ in range(3):
        list(learner.learn(1))
    assert learner.skip.in_row == 2
    refuse(learner, 2, monkeypatch)
    assert learner.skip is None and script.written == [(3, 3.0)]


# ------------------------------------------------------------------------------------------------------------ a run


def command(logdir, *overrides):
    run = "run={env_steps: 60, train_ratio: 4, eval_episodes: 0, log_every: 0, save_every: 0, max_skipped: 3}"
    return ["--config", "gym", *OVERRIDES, "task=probe_action", run, f"logdir={logdir}", *overrides]


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A run with steps so long that parameters leave the range of numbers, and its exit status."""
    logdir = tmp_path_factory.mktemp("failed") / "run"
    return logdir, training.main(command(logdir, "optimizer.lr=1e29"))


@pytest.mark.slow
def test_a_run_that_fails_keeps_its_checkpoint_and_leaves_the_update(failed, capsys):
    logdir, status = failed
    assert status == training.FAILED == 3
    # Updates begin after five rows. Those before were saved at every turn, those since at none.
    saved = checkpoints.load(logdir)
    assert saved.state["step"] <= 1 and saved.state["skipped_in_row"] <= 1
    assert all(np.isfinite(value).all() for value in saved.state.values())
    (path,) = logdir.glob("failure-*")
    assert sorted(file.name for file in path.iterdir()) == ["batch-0.npz", "failure.json", "state.npz"]
    about = json.loads((path / "failure.json").read_text())
    assert about["in_row"] >= 3
    assert about["tensor"].startswith("parameters.")
    assert path.name == f"failure-{about['update']}"
    lines = read_metrics(logdir / "metrics.jsonl")
    told = [line for line in lines if "guard_tensor" in line]
    assert [line["guard_update"] for line in told] == list(range(len(told))) and len(told) >= 3
    assert {line["guard_tensor"] for line in told} == {about["tensor"]}
    assert max(line.get("guard/skipped", 0) for line in lines) == 1.0

    batch, tensor, metrics = failure.recompute(path)
    assert tensor == about["tensor"] and batch.reward.shape == (2, 4)
    assert metrics[averages.IN_ROW] == about["in_row"] and np.isfinite(metrics["loss/total"])
    assert failure.main([str(logdir)]) == 0
    said = capsys.readouterr().out
    assert f"The first tensor that is not finite is {about['tensor']}." in said and "batch obs/" in said


@pytest.mark.slow
def test_a_bad_batch_alone_is_found_in_what_was_left(failed, tmp_path, capsys):
    """With a rate of learning that is sane, the update is finite; with NaN in the batch, it is not."""
    logdir, _ = failed
    (path,) = logdir.glob("failure-*")
    about = json.loads((path / "failure.json").read_text())
    about["config"]["optimizer"]["lr"] = 1e-3
    copy = tmp_path / "failure-0"
    copy.mkdir()
    (copy / "failure.json").write_text(json.dumps(about))
    (copy / "state.npz").write_bytes((path / "state.npz").read_bytes())
    (copy / "batch-0.npz").write_bytes((path / "batch-0.npz").read_bytes())
    assert failure.main([str(copy)]) == 1
    with np.load(path / "batch-0.npz") as file:
        arrays: dict[str, Any] = {name: file[name].copy() for name in file.files}
    arrays["reward"][0, 2] = np.nan
    np.savez(copy / "batch-0.npz", **arrays)
    assert failure.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 NOT FINITE" in said and "The first tensor that is not finite is losses.replay_critic." in said


def test_no_failure_to_look_at(tmp_path, capsys):
    assert failure.main([str(tmp_path)]) == 2
    assert "holds no failed update that can be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_member_that_fails_ends_a_population(tmp_path, capsys):
    population = ["task=jax_action", "run.loop=device", "population.lr=[1e-3,1e29]"]
    assert training.main(command(tmp_path, *population)) == training.FAILED
    said = capsys.readouterr().err
    # Its directory is named after what distinguishes it.
    (path,) = tmp_path.glob("*/failure-*")
    assert "updates in a row were skipped" in said and str(path) in said
    assert failure.main([str(path)]) == 0
    good = next(file for file in tmp_path.glob("*/metrics.jsonl") if file.parent != path.parent)
    assert all(line.get("guard/skipped", 0) == 0 for line in read_metrics(good))
    for logdir in (good.parent, path.parent):
        assert checkpoints.load(logdir).state["skipped_in_row"] == 0
