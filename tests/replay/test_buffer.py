from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from dreamer.config import ConfigError, ReplayConfig
from dreamer.replay import Layout, Replay, ReplayMemoryError, Ticket
from dreamer.types import Space, Step
from dreamer.world_models.rssm import StoredLatent
from tests.small import latent_spec

OBS = {"image": Space("image", (2, 2, 3)), "where": Space("vector", (2,))}
ACTION = {"move": Space("continuous", (2,)), "tool": Space("discrete", (), 5)}


def make(
    num_envs=1, rows=8, batch=1, length=3, online=False, seed=0, dtype=np.float32, obs=None, span="context", **kwargs
):
    config = ReplayConfig(capacity=num_envs * rows, batch_size=batch, batch_length=length, online=online)
    spec = latent_spec(deter=2, stoch=3, classes=4, dtype=dtype)
    return Replay(config, num_envs, Layout.of(obs or OBS, ACTION, spec, span), np.random.default_rng(seed), **kwargs)


def row_values(num_envs, row, first=(), last=(), terminal=(), dtype=np.float32):
    """A row in which every value tells its environment and row; flags are set for the listed environments."""
    env = np.arange(num_envs)
    where = np.stack([env, np.full(num_envs, row)], -1)
    step = Step(
        obs={
            "image": np.broadcast_to((10 * env + row)[:, None, None, None] % 256, (num_envs, 2, 2, 3)).astype(np.uint8),
            "where": where.astype(np.float32),
        },
        reward=(100 * env + row).astype(np.float32),
        is_first=np.isin(env, first),
        is_last=np.isin(env, last),
        is_terminal=np.isin(env, terminal),
        env_steps=np.ones(num_envs, np.int32),
    )
    action = {"move": (where + 0.5).astype(np.float32), "tool": ((env + row) % 5).astype(np.int32)}
    latent = StoredLatent((where % 128).astype(dtype), np.stack([env, env + row, env * 0 + row], -1).astype(np.uint8))
    return step, action, latent


def fill(replay, num_envs, start, stop, **kwargs):
    for row in range(start, stop):
        replay.add(*row_values(num_envs, row, **kwargs))


def leaves(batch):
    flat = {f"obs.{k}": v for k, v in batch.obs.items()} | {f"action.{k}": v for k, v in batch.prev_action.items()}
    names = ("reward", "is_first", "is_last", "is_terminal")
    flat |= {name: getattr(batch, name) for name in names}
    return flat | {"deter": batch.stored.deter, "stoch": batch.stored.stoch}


def assert_same(one, two):
    for (name, a), b in zip(leaves(one).items(), leaves(two).values(), strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_hand_made_episodes_and_wrap_around():
    replay = make(rows=4, length=3)  # One window fits exactly, so that sampling has no choice.
    replay.add(*row_values(1, 0, first=[0]))
    replay.add(*row_values(1, 1))
    replay.add(*row_values(1, 2, last=[0], terminal=[0]))
    assert not replay.ready
    assert replay.steps == 3
    with pytest.raises(RuntimeError, match="holds 3 steps of 1 environments, expected at least 4"):
        replay.sample()
    replay.add(*row_values(1, 3, first=[0]))
    assert replay.ready

    batch, ticket = replay.sample()
    assert ticket.env.tolist() == [0]
    assert ticket.row.tolist() == [1]
    assert batch.obs["where"].tolist() == [[[0, 1], [0, 2], [0, 3]]]
    assert batch.obs["image"][0, :, 1, 0, 2].tolist() == [1, 2, 3]
    assert batch.prev_action["move"].tolist() == [[[0.5, 0.5], [0.5, 1.5], [0.5, 2.5]]]
    assert batch.prev_action["tool"].tolist() == [[0, 1, 2]]
    assert batch.reward.tolist() == [[1, 2, 3]]
    assert batch.is_first.tolist() == [[False, False, True]]
    assert batch.is_last.tolist() == [[False, True, False]]
    assert batch.is_terminal.tolist() == [[False, True, False]]
    assert batch.stored.deter.tolist() == [[0, 0]]
    assert batch.stored.stoch.tolist() == [[0, 0, 0]]

    replay.add(*row_values(1, 4))  # Overwrites row 0 in slot 0; the window now ends behind the end of the ring.
    replay.add(*row_values(1, 5, last=[0]))
    batch, ticket = replay.sample()
    assert ticket.row.tolist() == [3]
    assert batch.obs["where"].tolist() == [[[0, 3], [0, 4], [0, 5]]]
    assert batch.prev_action["tool"].tolist() == [[2, 3, 4]]
    assert batch.is_first.tolist() == [[True, False, False]]
    assert batch.is_last.tolist() == [[False, False, True]]
    assert not batch.is_terminal.any()
    assert batch.stored.stoch.tolist() == [[0, 2, 2]]
    assert (replay.rows_total, replay.steps) == (6, 4)


def test_batches_are_fresh_arrays_of_the_declared_dtypes():
    replay = make(num_envs=2, rows=9, batch=3, length=3, dtype=ml_dtypes.bfloat16)
    fill(replay, 2, 0, 9, dtype=ml_dtypes.bfloat16)
    batch, ticket = replay.sample()
    got = {name: (value.shape, value.dtype) for name, value in leaves(batch).items()}
    flag = ((3, 3), np.dtype(bool))
    assert got == {
        "obs.image": ((3, 3, 2, 2, 3), np.uint8),
        "obs.where": ((3, 3, 2), np.float32),
        "action.move": ((3, 3, 2), np.float32),
        "action.tool": ((3, 3), np.int32),
        "reward": ((3, 3), np.float32),
        "is_first": flag,
        "is_last": flag,
        "is_terminal": flag,
        "deter": ((3, 2), ml_dtypes.bfloat16),
        "stoch": ((3, 3), np.uint8),
    }
    np.testing.assert_array_equal(batch.stored.deter.astype(int)[:, 1], ticket.row - 1)
    before = replay.contents()
    for value in leaves(batch).values():
        assert value.flags.c_contiguous
        assert value.flags.writeable
        value[...] = np.ones((), value.dtype)
    for name, value in replay.contents().items():
        np.testing.assert_array_equal(value, before[name])


def test_add_copies():
    replay = make(rows=4, length=3)
    step, action, latent = row_values(1, 0)
    for row in range(4):
        step.reward[...] = row
        replay.add(step, action, latent)
    assert replay.sample()[0].reward.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("total", [9, 23])  # Partly filled; wrapped around.
def test_every_start_is_equally_likely(total):
    replay = make(num_envs=3, rows=12, batch=6, length=4)
    fill(replay, 3, 0, total)
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(500):
        _, ticket = replay.sample()
        counts.update(zip(ticket.env.tolist(), ticket.row.tolist(), strict=True))
    oldest = max(0, total - 12)
    assert set(counts) == {(env, first) for env in range(3) for first in range(oldest + 1, total - 4 + 1)}
    assert stats.chisquare(list(counts.values())).pvalue > 0.01


def test_online_queue_uses_each_fresh_sequence_once_in_order():
    replay = make(num_envs=2, rows=40, batch=3, length=4, online=True)
    fill(replay, 2, 0, 13)  # Rows 1..4, 5..8 and 9..12 of both environments.
    tickets = [replay.sample()[1] for _ in range(2)]
    drawn = [pair for ticket in tickets for pair in zip(ticket.env.tolist(), ticket.row.tolist(), strict=True)]
    assert drawn == [(0, 1), (1, 1), (0, 5), (1, 5), (0, 9), (1, 9)]
    fill(replay, 2, 13, 16)  # Row 16 is still missing for 13..16.
    draws = replay._rng.bit_generator.state["state"]
    replay.sample()
    assert replay._rng.bit_generator.state["state"] != draws  # Nothing fresh: all three at random.
    fill(replay, 2, 16, 17)
    batch, ticket = replay.sample()  # Two are fresh, the third is random.
    assert list(zip(ticket.env[:2], ticket.row[:2], strict=True)) == [(0, 13), (1, 13)]
    assert batch.obs["where"][:2, :, 1].tolist() == [[13, 14, 15, 16]] * 2
    assert batch.prev_action["move"][:2, 0, 1].tolist() == [12.5, 12.5]


def test_online_queue_skips_what_was_evicted():
    replay = make(num_envs=2, rows=10, batch=1, length=4, online=True)
    fill(replay, 2, 0, 5)
    _, ticket = replay.sample()
    assert (ticket.env[0], ticket.row[0]) == (0, 1)
    fill(replay, 2, 5, 11)  # Row 0, the context of the one waiting for environment 1, is gone.
    _, ticket = replay.sample()
    assert (ticket.env[0], ticket.row[0]) == (0, 5)
    fill(replay, 2, 11, 23)  # Rows 13..22 remain: contexts 4, 8 and 12 are gone, 16 is the next.
    drawn = [replay.sample()[1] for _ in range(2)]
    assert [(t.env[0], t.row[0]) for t in drawn] == [(0, 17), (1, 17)]


def test_latents_are_written_back():
    replay = make(num_envs=2, rows=8, batch=2, length=3)
    fill(replay, 2, 0, 10)  # Rows 2..9 remain.
    before = replay.contents()
    deter = np.arange(12, dtype=np.float32).reshape(2, 3, 2) + 200
    stoch = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) + 200
    replay.update_stored(Ticket(env=np.array([1, 0]), row=np.array([6, 2])), StoredLatent(deter, stoch))
    after = replay.contents()
    for name, new in (("latent/deter", deter), ("latent/stoch", stoch)):
        expected = before.pop(name)
        expected[1, [4, 5, 6]] = new[0]
        expected[0, [0, 1, 2]] = new[1]
        np.testing.assert_array_equal(after.pop(name), expected)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_late_latents_of_evicted_rows_are_ignored():
    replay = make(rows=4, length=3)
    fill(replay, 1, 0, 4)
    _, ticket = replay.sample()  # Rows 1, 2, 3.
    fill(replay, 1, 4, 7)  # Rows 3..6 remain.
    before = replay.contents()["latent/deter"]
    new = StoredLatent(np.full((1, 3, 2), 77, np.float32), np.zeros((1, 3, 3), np.uint8))
    replay.update_stored(ticket, new)
    after = replay.contents()["latent/deter"]
    assert after[0, 0].tolist() == [77, 77]
    np.testing.assert_array_equal(after[0, 1:], before[0, 1:])
    fill(replay, 1, 7, 8)
    before = replay.contents()["latent/deter"]
    replay.update_stored(ticket, new)  # Now none is left.
    np.testing.assert_array_equal(replay.contents()["latent/deter"], before)


def test_abandoned_episode_ends_before_the_reset():
    replay = make(num_envs=2, rows=4, batch=1, length=3)
    for row in range(8):  # Environment 1 is reset at row 4 without an end; rows 1..4 remain then.
        replay.add(*row_values(2, row, first=[1] if row == 4 else []))
        if row == 3:
            assert not replay.contents()["is_last"].any()
        if row == 4:
            assert replay.contents()["is_last"].tolist() == [[False] * 4, [False, False, True, False]]
    assert not replay.contents()["is_last"].any()  # The mark was overwritten together with its row.
    assert not replay.contents()["is_terminal"].any()


def test_first_row_of_all_marks_nothing():
    replay = make(num_envs=2, rows=4, batch=1, length=3)
    replay.add(*row_values(2, 0, first=[0, 1]))
    replay.close_open_episodes()
    assert replay.contents()["is_last"].tolist() == [[True], [True]]
    other = make(num_envs=2, rows=4, batch=1, length=3)
    other.close_open_episodes()  # Nothing to close.
    other.add(*row_values(2, 0, first=[0, 1]))
    assert other.contents()["is_last"].tolist() == [[False], [False]]


def test_close_open_episodes_truncates_the_newest_row():
    replay = make(num_envs=2, rows=4, batch=1, length=3)
    fill(replay, 2, 0, 6)  # Rows 2..5 remain.
    replay.close_open_episodes()
    assert replay.contents()["is_last"].tolist() == [[False, False, False, True]] * 2
    assert not replay.contents()["is_terminal"].any()


def test_ready_needs_a_batch_of_steps_and_a_whole_window():
    replay = make(num_envs=2, rows=20, batch=5, length=4)  # 20 steps are 10 rows.
    fill(replay, 2, 0, 9)
    assert not replay.ready
    fill(replay, 2, 9, 10)
    assert replay.ready
    replay = make(num_envs=8, rows=20, batch=2, length=4)  # 8 steps are 1 row, a window is 5.
    fill(replay, 8, 0, 4)
    assert not replay.ready
    fill(replay, 8, 4, 5)
    assert replay.ready


def test_capacity_below_one_batch_is_refused():
    with pytest.raises(ConfigError, match=r"replay\.capacity=9 cannot be used: 3 .* at least 12\."):
        make(num_envs=3, rows=3, batch=1, length=3)
    with pytest.raises(ConfigError, match="at least 24"):
        make(num_envs=3, rows=7, batch=8, length=3)
    with pytest.raises(ValueError, match="0 environments"):
        Replay(ReplayConfig(), 0, Layout.of(OBS, ACTION, latent_spec(2, 3, 4)), np.random.default_rng(0))


def test_memory_is_refused_before_it_is_allocated(monkeypatch):
    step = 12 + 8 + 8 + 4 + 4 + 3 + 8 + 3  # image, where, move, tool, reward, flags, deter, stoch
    exact = make(num_envs=4, rows=25, available_bytes=100 * step)
    assert exact.memory_bytes == 100 * step
    rng = np.random.default_rng(0)
    monkeypatch.setattr(np, "zeros", lambda *_: pytest.fail("allocated"))
    with pytest.raises(ReplayMemoryError) as error:
        make(num_envs=4, rows=250_000_000, seed=rng, available_bytes=20_000_000_999)
    message = str(error.value)
    for part in ("capacity=1000000000", "needs 50.00 GB", "20.00 GB are available", "30.00 GB are missing"):
        assert part in message
    assert message.endswith("replay.capacity=400000016.")  # floor(20000000999 / (4 * 50)) * 4
    with pytest.raises(ReplayMemoryError):
        make(num_envs=4, rows=25, seed=rng, available_bytes=100 * step - 1)


def test_memory_of_this_machine_is_asked(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 100}))
    with pytest.raises(ReplayMemoryError):
        make()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s, a, x: (s._replace(reward=s.reward.astype(np.float64)), a, x), "'reward' .* float64.* float32"),
        (lambda s, a, x: (s._replace(obs={"where": s.obs["where"]}), a, x), "expected .*'obs/image'"),
        (lambda s, a, x: (s, {**a, "jump": a["tool"]}, x), "'action/jump'"),
        (lambda s, a, x: (s, {**a, "move": a["move"][:, :1]}, x), r"'action/move' .*float32\[2, 1\].*float32\[2, 2\]"),
        (lambda s, a, x: (s, a, x._replace(stoch=x.stoch.astype(np.int32))), "'latent/stoch' .*int32.*uint8"),
        (lambda s, a, x: (s._replace(is_last=s.is_last[:1]), a, x), r"'is_last' .*bool\[1\].*bool\[2\]"),
    ],
)
def test_unfit_steps_are_refused_and_change_nothing(spoil, message):
    replay = make(num_envs=2, rows=4)
    with pytest.raises(ValueError, match=message):
        replay.add(*spoil(*row_values(2, 0)))
    assert replay.rows_total == 0


def test_unfit_latents_are_refused():
    replay = make(rows=4, length=3)
    fill(replay, 1, 0, 4)
    _, ticket = replay.sample()
    with pytest.raises(ValueError, match=r"'latent/deter' .*\[1, 2, 2\].*\[1, 3, 2\]"):
        replay.update_stored(ticket, StoredLatent(np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 3), np.uint8)))


class NaiveReplay:
    """Lists of rows, and nothing clever."""

    def __init__(self, num_envs, rows, batch, length):
        self.num_envs, self.rows, self.batch, self.length = num_envs, rows, batch, length
        self.total, self.kept, self.queue = 0, {}, []

    def add(self, step, action, latent):
        for env in range(self.num_envs):
            if step.is_first[env] and (env, self.total - 1) in self.kept:
                self.kept[env, self.total - 1]["is_last"] = True
            self.kept[env, self.total] = {
                **{f"obs.{key}": value[env].copy() for key, value in step.obs.items()},
                **{f"action.{key}": value[env].copy() for key, value in action.items()},
                **{name: getattr(step, name)[env] for name in ("reward", "is_first", "is_last", "is_terminal")},
                "deter": latent.deter[env].copy(),
                "stoch": latent.stoch[env].copy(),
            }
            self.kept.pop((env, self.total - self.rows), None)
        if self.total and self.total % self.length == 0:
            self.queue += [(env, self.total - self.length + 1) for env in range(self.num_envs)]
        self.total += 1

    def present(self, env, first):
        return all((env, row) in self.kept for row in range(first - 1, first + self.length))

    def fresh(self):
        self.queue = [entry for entry in self.queue if self.present(*entry)]
        taken, self.queue = self.queue[: self.batch], self.queue[self.batch :]
        return taken

    def window(self, env, first):
        rows = [self.kept[env, row] for row in range(first - 1, first + self.length)]
        window = {name: rows[0][name] for name in ("deter", "stoch")}
        for name in rows[0].keys() - window.keys():
            shifted = rows[:-1] if name.startswith("action") else rows[1:]
            window[name] = np.stack([row[name] for row in shifted])
        return window

    def write(self, env, row, deter, stoch):
        if (env, row) in self.kept:
            self.kept[env, row] |= {"deter": deter, "stoch": stoch}


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_agree_with_a_list_of_rows(seed):
    rng = np.random.default_rng(seed)
    num_envs, length, batch = int(rng.integers(1, 4)), int(rng.integers(2, 6)), int(rng.integers(1, 6))
    rows = max(length + 1, -(-batch * length // num_envs)) + int(rng.integers(0, 15))
    replay = make(num_envs, rows, batch, length, online=True, seed=seed)
    naive = NaiveReplay(num_envs, rows, batch, length)
    tickets = []
    for _ in range(250):
        if rng.random() < 0.7:
            flags = [np.flatnonzero(rng.random(num_envs) < 0.2) for _ in range(3)]
            values = row_values(num_envs, naive.total, *flags)
            replay.add(*values)
            naive.add(*values)
        elif replay.ready and rng.random() < 0.6:
            result, ticket = replay.sample()
            pairs = list(zip(ticket.env.tolist(), ticket.row.tolist(), strict=True))
            fresh = naive.fresh()
            assert pairs[: len(fresh)] == fresh
            for index, pair in enumerate(pairs):
                assert naive.present(*pair)
                for name, expected in naive.window(*pair).items():
                    np.testing.assert_array_equal(leaves(result)[name][index], expected, err_msg=name)
            tickets.append((ticket, pairs))
        elif tickets:
            ticket, pairs = tickets.pop(int(rng.integers(len(tickets))))  # Often late.
            deter = rng.normal(size=(batch, length, 2)).astype(np.float32)
            stoch = rng.integers(0, 256, (batch, length, 3), np.uint8)
            replay.update_stored(ticket, StoredLatent(deter, stoch))
            for b, (env, first) in enumerate(pairs):
                for t in range(length):
                    naive.write(env, first + t, deter[b, t], stoch[b, t])
        assert replay.steps == len(naive.kept)
    assert naive.total > rows
    assert tickets


def test_an_algorithm_can_have_what_it_stored_with_every_step():
    replay = make(num_envs=2, rows=8, batch=4, length=3, span="sequence")
    fill(replay, 2, 0, 11)
    batch, ticket = replay.sample()
    assert batch.stored.deter.shape == (4, 1 + 3, 2)
    rows = ticket.row[:, None] + np.arange(-1, 3)  # The step before each sequence, and its own.
    np.testing.assert_array_equal(batch.stored.deter[..., 1], rows)
    np.testing.assert_array_equal(batch.stored.stoch[..., 0], np.repeat(ticket.env[:, None], 4, 1))
    blank = replay.blank_batch()
    assert blank.stored.deter.shape == (4, 1 + 3, 2)


def test_an_algorithm_need_not_store_anything():
    config = ReplayConfig(capacity=8, batch_size=1, batch_length=3, online=False)
    replay = Replay(config, 1, Layout.of(OBS, ACTION, ()), np.random.default_rng(0))
    for row in range(5):
        step, action, _ = row_values(1, row)
        replay.add(step, action, ())
    batch, ticket = replay.sample()
    assert batch.stored == ()
    replay.update_stored(ticket, ())
    assert not any(name.startswith("latent/") for name in replay.contents())
