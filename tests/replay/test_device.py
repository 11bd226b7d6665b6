"""Replay in device memory answers bit for bit what replay on the host answers."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from dreamer.config import ConfigError, ReplayConfig
from dreamer.replay import Layout, Ticket, device, replay_rows
from dreamer.world_models.rssm import StoredLatent
from tests.replay.test_buffer import ACTION, OBS, leaves, make, row_values
from tests.small import latent_spec

KEY = jax.random.key(0)


def arrays(values):
    """A row without the log of its step, which is not an array."""
    step, action, latent = values
    return step._replace(log={}), action, latent


class Twins:
    """The same rows in both forms of replay; the device form compiled as a program would have it."""

    def __init__(self, num_envs, rows, batch, length, online=False, dtype=np.float32, span="context"):
        self.host = make(num_envs, rows, batch, length, online, dtype=dtype, span=span)
        self.config = ReplayConfig(num_envs * rows, batch, length, online)
        self.num_envs, self.rows, self.length, self.dtype = num_envs, rows, length, dtype
        layout = Layout.of(OBS, ACTION, latent_spec(deter=2, stoch=3, classes=4, dtype=dtype), span)
        self.ring = device.empty(layout.specs, num_envs, replay_rows(self.config, num_envs))
        self.add = jax.jit(lambda ring, *row: device.add(ring, layout, *row))
        self.gather = jax.jit(
            lambda fields, place, length: device.gather(fields, layout, place, length), static_argnames="length"
        )
        self.write = jax.jit(lambda ring, place, stored: device.update_stored(ring, layout, place, stored, length))
        self.choose = jax.jit(lambda cursor, key: device.choose(cursor, key, self.config, num_envs, rows))

    def fill(self, start, stop, **kwargs):
        for row in range(start, stop):
            values = arrays(row_values(self.num_envs, row, dtype=self.dtype, **kwargs))
            self.host.add(*values)
            self.ring = self.add(self.ring, *values)

    def place(self, ticket):
        return device.Place(jnp.asarray(ticket.env, jnp.int32), jnp.asarray(ticket.row, jnp.int32))

    def compare(self):
        """Batches at one and the same place, and everything that is stored."""
        batch, ticket = self.host.sample()
        found = self.gather(self.ring.fields, self.place(ticket), length=self.length)
        for (name, expected), got in zip(leaves(batch).items(), leaves(found).values(), strict=True):
            assert got.dtype == expected.dtype, name
            np.testing.assert_array_equal(got, expected, err_msg=name)
        total = self.host.rows_total
        slots = np.arange(max(0, total - self.rows), total) % self.rows
        for name, expected in self.host.contents().items():
            np.testing.assert_array_equal(np.asarray(self.ring.fields[name])[:, slots], expected, err_msg=name)
        return ticket

    def write_back(self, ticket, seed):
        rng = np.random.default_rng(seed)
        shape = (len(ticket.env), self.length)
        latents = StoredLatent(
            rng.normal(size=(*shape, 2)).astype(self.dtype), rng.integers(0, 4, (*shape, 3)).astype(np.uint8)
        )
        self.host.update_stored(ticket, latents)
        self.ring = self.write(self.ring, self.place(ticket), latents)


@pytest.mark.parametrize("total", [6, 8, 21])  # Partly filled, full, and wrapped around.
def test_the_newest_sequences_end_with_the_last_row(total):
    twins = Twins(num_envs=2, rows=8, batch=1, length=3)
    twins.fill(0, total)
    place = device.newest(twins.ring.cursor, 3, 3, 2, 8)
    found = twins.gather(twins.ring.fields, place, length=3)
    last = total - 1
    # The third is the one before the first, as far back as there are rows.
    earlier = [last - 5, last - 4, last - 3] if total > 6 else [1, 2, 3]
    rows = [[last - 2, last - 1, last], [last - 2, last - 1, last], earlier]
    for batch in (twins.host.newest(3), found):
        assert np.asarray(batch.obs["where"])[..., 0].tolist() == [[0] * 3, [1] * 3, [0] * 3]
        assert np.asarray(batch.obs["where"])[..., 1].tolist() == rows
        assert np.asarray(batch.prev_action["move"])[:, 0, 1].tolist() == [row[0] - 0.5 for row in rows]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_same_batches_after_wrapping_around_and_writing_back(dtype):
    twins = Twins(num_envs=3, rows=11, batch=6, length=4, dtype=dtype)
    twins.fill(0, 8)
    late = twins.compare()
    for row in range(8, 40):
        twins.fill(row, row + 1, first=[row % 3], last=[(row + 1) % 3], terminal=[row % 2])
        ticket = twins.compare()
        # Six sequences of four of eleven rows overlap often; one that waits for some rows is partly overwritten.
        twins.write_back(ticket, row)
        if row % 5 == 0:
            twins.write_back(late, 100 + row)
            late = ticket
    twins.compare()


def test_of_sequences_that_overlap_the_later_one_wins():
    twins = Twins(num_envs=2, rows=12, batch=5, length=4)
    twins.fill(0, 12)
    for rows in ([1, 2, 3, 2, 1], [5, 5, 5, 5, 5], [8, 7, 6, 5, 4]):
        twins.write_back(Ticket(np.array([0, 0, 0, 1, 0]), np.array(rows)), seed=rows[0])
        twins.compare()


def test_what_is_nowhere_changes_nothing():
    twins = Twins(num_envs=2, rows=6, batch=3, length=4)
    twins.fill(0, 9)
    latents = StoredLatent(jnp.ones((3, 4, 2)), jnp.ones((3, 4, 3), jnp.uint8))
    twins.ring = twins.write(twins.ring, device.nowhere(3), latents)
    twins.compare()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_online_queue_is_at_the_same_place(num_envs):
    twins = Twins(num_envs=num_envs, rows=14, batch=4, length=3, online=True)
    rng, start = np.random.default_rng(1), 13
    twins.fill(0, start)
    fresh = 0
    for number in range(60):
        stop = start + int(rng.choice([0, 1, 3, 30], p=[0.4, 0.4, 0.15, 0.05]))
        twins.fill(start, stop)
        start = stop
        before = twins.host._fresh_row * num_envs + twins.host._fresh_env
        behind = max(0, twins.host._oldest - twins.host._fresh_row)
        ticket = twins.compare()
        place, cursor = twins.choose(twins.ring.cursor, jax.random.fold_in(KEY, number))
        after = twins.host._fresh_row * num_envs + twins.host._fresh_env
        assert (cursor.fresh_row, cursor.fresh_env) == (twins.host._fresh_row, twins.host._fresh_env)
        twins.ring = twins.ring._replace(cursor=cursor)
        if not behind and after == before:
            continue
        used = min(4, num_envs) if behind else 1
        fresh += 1
        np.testing.assert_array_equal(place.env[:used], ticket.env[:used])
        np.testing.assert_array_equal(place.row[:used], ticket.row[:used])
    assert fresh > 10


@pytest.mark.parametrize("total", [9, 23])  # Partly filled; wrapped around.
def test_every_start_is_equally_likely(total):
    config = ReplayConfig(capacity=36, batch_size=3000, batch_length=4, online=False)
    cursor = device.Cursor(*(jnp.int32(x) for x in (total, 0, 0)))
    place, _ = device.choose(cursor, KEY, config, 3, 12)
    pairs, counts = np.unique(np.stack(place), axis=1, return_counts=True)
    oldest = max(0, total - 12)
    expected = {(env, first) for env in range(3) for first in range(oldest + 1, total - 4 + 1)}
    assert set(map(tuple, pairs.T.tolist())) == expected
    assert stats.chisquare(counts).pvalue > 0.01


def test_whole_sequences_of_what_is_stored_are_those_of_the_host():
    twins = Twins(num_envs=2, rows=8, batch=3, length=3, span="sequence")
    twins.fill(0, 11)
    for _ in range(5):
        twins.compare()


def test_members_share_the_cursor_and_nothing_else():
    twins = Twins(num_envs=2, rows=6, batch=2, length=3)
    values = [arrays(row_values(2, row)) for row in range(8)]
    many = device.Ring(twins.ring.cursor, jax.tree.map(lambda x: jnp.stack([x, x]), twins.ring.fields))
    axes: Any = device.Ring(*(None, 0))  # type: ignore[arg-type]
    add = jax.vmap(twins.add, in_axes=(axes, 0, 0, 0), out_axes=axes)
    for step, action, latent in values:
        twins.ring = twins.add(twins.ring, step, action, latent)
        other = step._replace(reward=step.reward + 1)
        many = add(many, *jax.tree.map(lambda *x: jnp.stack(x), (step, action, latent), (other, action, latent)))
    assert many.cursor.total == 8
    for name, field in twins.ring.fields.items():
        np.testing.assert_array_equal(many.fields[name][0], field)
        np.testing.assert_array_equal(many.fields[name][1], field + 1 if name == "reward" else field)


def test_a_capacity_that_is_too_small_is_refused():
    with pytest.raises(ConfigError, match=r"2 environments with batches of 4 x 8 steps need at least 32"):
        replay_rows(ReplayConfig(capacity=31, batch_size=4, batch_length=8), 2)
