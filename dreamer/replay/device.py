"""Replay in device memory: the ring of `dreamer.replay.buffer` as a pytree, and its verbs as pure functions.

Rows, slots, the context row, abandoned episodes, the online queue and late write-backs are those of the host form; read
about them there. What differs is where the state lives: a `Ring` is an argument and a result, so that it can be part of
a compiled program, be donated to it, and have a leading axis of members under `jax.vmap`. Its `Cursor` holds only what
all members agree on, and stays without that axis: a slot that is one number is an update in place, and a condition on
one number does not make XLA compute both cases.

Rows are counted in int32, enough for 2e9 rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from dreamer.config import ReplayConfig
from dreamer.replay.layout import Layout, ReplayMemoryError, Specs
from dreamer.types import Action, Batch, Step, Stored


class Cursor(NamedTuple):
    """Where writing and the online queue stand."""

    total: Int32[Array, ""]
    """Rows ever added."""
    fresh_row: Int32[Array, ""]
    """Context row of the next sequence that was never used."""
    fresh_env: Int32[Array, ""]
    """First environment that has not used it."""


class Ring(NamedTuple):
    """The last rows of N environments."""

    cursor: Cursor
    """Scalars."""
    fields: dict[str, Array]
    """``[N, rows, ...]`` by the names of `dreamer.replay.Layout`."""


class Place(NamedTuple):
    """Where B sequences lie. Compare `buffer.Ticket`."""

    env: Int32[Array, "B"]
    """Environment of each."""
    row: Int32[Array, "B"]
    """Absolute row of its first trained step."""


def check_memory(replay: int, other: int, members: int, capacity: int, available: int) -> None:
    """Raise `ReplayMemoryError` unless the rings of all members, and everything else, fit into device memory.

    Args:
        replay: bytes of the rings of all members.
        other: bytes of everything else of all members.
        members: their number.
        capacity: steps that each remembers (``replay.capacity``).
        available: bytes of the devices.
    """
    missing = replay + other - available
    if missing <= 0:
        return
    largest = max(0, available - other) * capacity // replay
    remedy = f"The largest that fits is replay.capacity={largest}" if largest else "Train fewer members or smaller ones"
    raise ReplayMemoryError(
        f"replay.capacity={capacity} for {members} member(s) needs {replay / 1e9:.2f} GB of device memory "
        f"({replay // (capacity * members)} bytes per step), and networks, optimizers and gradients {other / 1e9:.2f} "
        f"GB; {available / 1e9:.2f} GB are available, {missing / 1e9:.2f} GB are missing. {remedy}."
    )


def start() -> Cursor:
    """The cursor of a ring without rows."""
    return Cursor(*(jnp.zeros((), jnp.int32) for _ in Cursor._fields))


def empty(specs: Specs, num_envs: int, rows: int) -> Ring:
    """A ring without rows."""
    fields = {name: jnp.zeros((num_envs, rows, *shape), dtype) for name, (shape, dtype) in specs.items()}
    return Ring(start(), fields)


def nowhere(batch_size: int) -> Place:
    """The place of no sequence: writing back to it changes nothing."""
    # Rows far below 0 count as overwritten, see `update_stored`.
    return Place(env=jnp.zeros(batch_size, jnp.int32), row=jnp.full(batch_size, -(2**30), jnp.int32))


def add(ring: Ring, layout: Layout, step: Step, action: Action, stored: Stored) -> Ring:
    """Append a row ``[N, ...]``, see `buffer.Replay.add`: the oldest is forgotten, an abandoned episode is marked."""
    values = layout.row(step, action, stored)
    total = ring.cursor.total
    fields = dict(ring.fields)
    rows = fields["reward"].shape[1]
    # A reset now ends the episode that the row before belongs to. The first row has none before it and marks the last
    # slot, which is overwritten before it is read.
    before = (total - 1) % rows
    abandoned = jax.lax.dynamic_index_in_dim(fields["is_last"], before, axis=1, keepdims=False) | step.is_first
    fields["is_last"] = jax.lax.dynamic_update_index_in_dim(fields["is_last"], abandoned, before, axis=1)
    # Absolute row r lies in slot r modulo the number of slots, where it replaces the oldest row.
    for name, value in values.items():
        value = jnp.asarray(value, fields[name].dtype)
        fields[name] = jax.lax.dynamic_update_index_in_dim(fields[name], value, total % rows, axis=1)
    return Ring(ring.cursor._replace(total=total + 1), fields)


def choose(cursor: Cursor, key: Array, config: ReplayConfig, num_envs: int, rows: int) -> tuple[Place, Cursor]:
    """Places of B sequences: with ``config.online`` those never used before, oldest first; the others uniform.

    The cursor that is returned counts the fresh ones as used. Before `rows_until_ready` the places are meaningless.
    """
    oldest = jnp.maximum(0, cursor.total - rows)
    # A context must be followed by T rows, so the last T rows held cannot be one.
    starts = jnp.maximum(1, jnp.minimum(cursor.total, rows) - config.batch_length)
    # One draw stands for a pair: number n is start n mod starts of environment n // starts.
    drawn = jax.random.randint(key, (config.batch_size,), 0, num_envs * starts)
    env = drawn // starts
    context = oldest + drawn % starts
    if config.online:
        # Fresh sequences take the place of the first ones that were drawn.
        fresh_env, fresh_context, is_fresh, cursor = _take_fresh(cursor, oldest, config, num_envs)
        env = jnp.where(is_fresh, fresh_env, env)
        context = jnp.where(is_fresh, fresh_context, context)
    # The first trained step is the one after the context.
    return Place(env, context + 1), cursor


def newest(cursor: Cursor, count: int, length: int, num_envs: int, rows: int) -> Place:
    """Places of the last sequences, see `buffer.Replay.newest`."""
    # Sequence i is of environment i mod N, and lies i // N sequences back from the newest.
    back, env = jnp.divmod(jnp.arange(count), num_envs)
    # The newest one ends with row total - 1, so its context is T rows before that; each further one T rows earlier.
    context = cursor.total - 1 - length * (back + 1)
    oldest = jnp.maximum(0, cursor.total - rows)
    return Place(env, jnp.maximum(context, oldest) + 1)


def gather(fields: dict[str, Array], layout: Layout, place: Place, length: int) -> Batch:
    """The sequences at a place, ``[B, T, ...]``, each with the row before it as context."""
    rows = fields["reward"].shape[1]
    # Slots [B, T + 1], from the context row on: the previous action of each step is in the row before it.
    slot = (place.row[:, None] - 1 + jnp.arange(length + 1)[None]) % rows
    before = slot[:, :-1]
    now = slot[:, 1:]
    env = place.env[:, None]

    def take(name: str, slot: Int32[Array, "B steps"]) -> Array:
        return fields[name].at[env, slot].get(mode="promise_in_bounds")

    def stored_at(name: str) -> Array:
        return take(name, slot) if layout.span == "sequence" else take(name, before[:, :1])[:, 0]

    return layout.batch(lambda name: take(name, now), lambda name: take(name, before), stored_at)


def update_stored(ring: Ring, layout: Layout, place: Place, stored: Stored, length: int) -> Ring:
    """Replace what is stored by what an update computed, ``[B, T, ...]``, see `buffer.Replay.update_stored`.

    Rows that were overwritten are left alone, and where sequences overlap, the later one wins. XLA writes twice to one
    element in no particular order, so all writes but the last are dropped, and each element is written once.
    """
    fields = dict(ring.fields)
    total = ring.cursor.total
    rows = fields["reward"].shape[1]
    # Absolute rows [B, T] of the trained steps. Those below the oldest were overwritten: their slot holds another row.
    row = place.row[:, None] + jnp.arange(length)[None]
    wanted = (row >= jnp.maximum(0, total - rows)) & (row < total) & ~_is_superseded(place, length)
    # The other writes go to slot `rows`, which does not exist, so that XLA drops them.
    slot = jnp.where(wanted, row % rows, rows)
    for name, value in layout.stored_fields(stored).items():
        fields[name] = fields[name].at[place.env[:, None], slot].set(value, mode="drop")
    return ring._replace(fields=fields)


def _is_superseded(place: Place, length: int) -> Bool[Array, "B T"]:
    """Which elements of B sequences lie in a later sequence of the batch as well."""
    row = place.row[:, None] + jnp.arange(length)[None]
    # [other, sequence, step]: how far into another sequence an element lies, counted from its first trained step.
    offset = row[None] - place.row[:, None, None]
    # It lies in the other sequence if that has the same environment, and the offset is one of its T steps.
    inside = (place.env[:, None, None] == place.env[None, :, None]) & (offset >= 0) & (offset < length)
    order = jnp.arange(len(place.row))
    is_later = order[:, None, None] > order[None, :, None]
    return (inside & is_later).any(0)


def _take_fresh(
    cursor: Cursor, oldest: Int32[Array, ""], config: ReplayConfig, num_envs: int
) -> tuple[Int32[Array, "B"], Int32[Array, "B"], Bool[Array, "B"], Cursor]:
    """Environments and context rows of up to B sequences not used before, which ones there are, and the next position.

    The position on a grid of `buffer.Replay`, in arithmetic without branches.
    """
    length = config.batch_length
    # If the next context was overwritten, move on by whole tiles, rounded up, to the first one that is present. All
    # environments begin with it.
    behind = oldest - cursor.fresh_row
    is_evicted = behind > 0
    row = jnp.where(is_evicted, cursor.fresh_row + -(-behind // length) * length, cursor.fresh_row)
    env = jnp.where(is_evicted, 0, cursor.fresh_env)
    # Tiles whose T rows after the context are all there. Each has a sequence for every environment, of which those
    # before `env` are used.
    complete = jnp.maximum(0, (cursor.total - 1 - row) // length)
    count = jnp.clip(complete * num_envs - env, 0, config.batch_size)
    # Go through the environments of a tile, then on to the next tile. Entries from `count` on are not fresh.
    order = jnp.arange(config.batch_size)
    tile, fresh_env = jnp.divmod(env + order, num_envs)
    # The position after the last one taken is the next to be used.
    tiles, next_env = jnp.divmod(env + count, num_envs)
    following = Cursor(cursor.total, row + tiles * length, next_env)
    return fresh_env, row + tile * length, order < count, following
