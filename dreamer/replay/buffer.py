"""Replay on the host: a ring of steps, sequences drawn from it, and what updates write back into it.

All environments step together, so a *row* is one step of all N of them. Rows are counted from 0 forever, and a row is
present while it is among the last ``rows``. Counting absolutely is what lets a late write to a row that was overwritten
meanwhile be recognised and dropped. Timing: see `dreamer.types`. Where the rows lie: see `dreamer.replay.storage`.

Sequences cross episode borders on purpose; ``is_first`` makes that correct, and nothing is cut or padded.

Every trained step needs the row before it, for its previous action and for what was stored. So a sequence of T steps
takes T + 1 rows, and the first of them is its *context row*.
"""

import copy as copying
import pathlib
from typing import Any, NamedTuple

import numpy as np
import psutil

from dreamer.config import ReplayConfig
from dreamer.replay import storage
from dreamer.replay.layout import (
    Layout,
    bytes_per_step,
    check_disk,
    check_fields,
    check_memory,
    check_same,
    describe,
    is_stored,
    replay_rows,
    rows_until_ready,
    specs_of,
)
from dreamer.replay.storage import Commit, Storage, disk_bytes
from dreamer.types import Batch, Step, Stored


class Ticket(NamedTuple):
    """Where the B sequences of a batch came from."""

    env: np.ndarray
    """Environment of each sequence, int64 ``[B]``."""
    row: np.ndarray
    """Absolute row of its first trained step, index 0 of the batch's ``[B, T]`` fields, int64 ``[B]``."""


class Replay:
    """The last ``config.capacity`` steps of N environments.

    Memory and disk are claimed as they are needed, but the full size is checked before anything is allocated, so
    that a run which cannot finish does not start. Only `flush` may be called while another thread uses the replay.

    Args:
        config: capacity, batch size B, batch length T, and whether fresh sequences are used first.
        num_envs: N, environments that step together.
        layout: what a row holds, from `Layout.of`.
        rng: draws the sequences. Owned by this replay from here on; its state is part of `commit`.
        available_bytes: memory that may be used, see `dreamer.devices.memory.host_memory`; None: what the host has
            free, whatever a container allows of it.
        directory: where the files are, which only this replay may use; None: everything is in memory, and `commit`
            is not possible. The first `add` replaces the files of an earlier replay, unless `restore` comes first.

    Attributes:
        memory_bytes, disk_bytes: what a full ring takes at most. The system also caches parts of the files in memory,
            and gives that up when it is needed.

    Raises:
        ConfigError: if the capacity cannot hold one sequence of T + 1 rows and one batch of B * T steps.
        ReplayMemoryError: if the capacity does not fit into memory, or on disk.
    """

    def __init__(
        self,
        config: ReplayConfig,
        num_envs: int,
        layout: Layout,
        rng: np.random.Generator,
        available_bytes: int | None = None,
        directory: pathlib.Path | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"Replay was asked for {num_envs} environments, expected at least 1.")
        self._config = config
        self._num_envs = num_envs
        self._rng = rng
        self._rows = replay_rows(config, num_envs)
        self._ready_rows = rows_until_ready(config, num_envs)
        self._layout = layout
        self._specs = layout.specs
        self._directory = directory
        in_memory = {name: spec for name, spec in self._specs.items() if directory is None or is_stored(name)}
        if available_bytes is None:
            available_bytes = psutil.virtual_memory().available
        check_memory(config.capacity, num_envs, bytes_per_step(in_memory), available_bytes)
        self.memory_bytes = self._rows * num_envs * bytes_per_step(in_memory)
        self.disk_bytes = 0 if directory is None else disk_bytes(self._specs, num_envs, self._rows)
        if directory is not None:
            check_disk(directory, config.capacity, self.disk_bytes)
        self._opened: Storage | None = None
        self._total = 0
        # Rows before this one were lost to damage, not forgotten.
        self._floor = 0
        # The next fresh sequence: its context row, and the first environment that has not used it.
        self._fresh_row = 0
        self._fresh_env = 0

    @property
    def rows_total(self) -> int:
        """Rows ever added; the next `add` writes this absolute row."""
        return self._total

    @property
    def steps(self) -> int:
        """Steps held now, over all environments."""
        return (self._total - self._oldest) * self._num_envs

    @property
    def steps_until_ready(self) -> int:
        """Steps of all environments together after which there are enough for a batch; see `ready`."""
        return self._ready_rows * self._num_envs

    @property
    def unclaimed_bytes(self) -> int:
        """Memory that a full ring will take beyond what the steps held now take."""
        return self.memory_bytes - self.steps * (self.memory_bytes // (self._rows * self._num_envs))

    @property
    def commit_due(self) -> bool:
        """Whether it is time for another `commit`: the next `add` overwrites what the last but one needs."""
        return self._opened is not None and self._opened.due(self._total)

    @property
    def ready(self) -> bool:
        """Whether `sample` can answer: one sequence of T + 1 rows, and B * T steps in all, are held."""
        return self._total - self._oldest >= self._ready_rows

    def add(self, step: Step, action: dict[str, np.ndarray], stored: Stored) -> None:
        """Append one row by copying; the oldest row is forgotten when the ring is full.

        An environment that is reset before its episode ended leaves a row that is not ``is_last`` followed by one that
        is ``is_first``. The episode was abandoned; its last row becomes ``is_last`` now, because otherwise the return
        of that step would be bootstrapped through the reset. The official ``replay.py:_annotate_batch`` does so when
        sampling.

        Args:
            step: observations ``[N, ...]``, reward float32 ``[N]`` and flags bool ``[N]``. ``env_steps`` is not kept.
            action: ``[N, ...]`` per key, chosen after ``step.obs``.
            stored: what the algorithm keeps with this step, ``[N, ...]``.

        Raises:
            ValueError: if keys, shapes or dtypes are not those of the spaces; replay is unchanged then.
            ReplayDiskError: the disk is full; replay is unchanged, and the same row can be added once there is room.
        """
        given = self._layout.row(step, action, stored)
        values = check_fields(given, self._specs, (self._num_envs,), "step")
        ring = self._storage
        ring.reserve(self._total)
        # A reset now ends the episode that the row before belongs to, whether or not that row said so.
        if self._total:
            ring.fields["is_last"][(self._total - 1) % ring.slots] |= values["is_first"]
        # Absolute row r lies in slot r modulo the number of slots, where it replaces the oldest row.
        slot = self._total % ring.slots
        for name, value in values.items():
            ring.fields[name][slot] = value
        # The steps of one slot are N neighbours in the flat arrays.
        ring.mark_changed(slice(slot * self._num_envs, (slot + 1) * self._num_envs))
        self._total += 1

    def sample(self) -> tuple[Batch, Ticket]:
        """Draw B sequences of T steps, each with the row before it as context.

        The context row gives what was stored, and the previous action of index 0. With ``config.online``, sequences
        never used before come first, then (as without it) every (environment, start) present is equally likely.

        Returns:
            A `Batch` of newly allocated arrays ``[B, T, ...]``, and the `Ticket` for `update_stored`.

        Raises:
            RuntimeError: if not `ready`.
        """
        if not self.ready:
            raise RuntimeError(
                f"Replay holds {self.steps} steps of {self._num_envs} environments, expected at least "
                f"{self._ready_rows * self._num_envs} before sampling. Check `ready` first."
            )
        none = np.zeros(0, np.int64)
        fresh_env, fresh_context = self._take_fresh() if self._config.online else (none, none)
        drawn_env, drawn_context = self._draw_uniform(self._config.batch_size - len(fresh_env))
        env = np.concatenate([fresh_env, drawn_env])
        context = np.concatenate([fresh_context, drawn_context])
        # The first trained step is the one after the context.
        return self._gather(env, context), Ticket(env=env, row=context + 1)

    def newest(self, count: int) -> Batch:
        """The last sequences of up to ``count`` environments; with fewer environments, those just before them as well.

        Where there are no more, they overlap. Draws no random numbers and does not count as use, so it changes nothing
        that follows. Call it when `ready`.
        """
        # Sequence i is of environment i mod N, and lies i // N sequences back from the newest.
        back, env = np.divmod(np.arange(count), self._num_envs)
        # The newest one ends with row total - 1, so its context is T rows before that; each further one T rows earlier.
        context = self._total - 1 - self._config.batch_length * (back + 1)
        return self._gather(env, np.maximum(context, self._oldest))

    def _gather(self, env: np.ndarray, context: np.ndarray) -> Batch:
        """Copies of sequences from the row after ``context [B]`` on, in environments ``env [B]``."""
        # One row more than the batch has steps: the previous action of each step is in the row before it.
        index = self._index(env, context, self._config.batch_length + 1)
        before = index[:, :-1]
        now = index[:, 1:]
        stored = index if self._layout.span == "sequence" else index[:, 0]
        flat = self._storage.flat
        return self._layout.batch(
            now=lambda name: flat[name].take(now, axis=0),
            before=lambda name: flat[name].take(before, axis=0),
            stored=lambda name: flat[name].take(stored, axis=0),
        )

    def blank_batch(self, size: int | None = None) -> Batch:
        """Zeros with the keys, shapes and dtypes of what `sample` returns, or of ``size`` sequences."""
        size = self._config.batch_size if size is None else size
        length = self._config.batch_length

        def zeros(name: str, *lead: int) -> np.ndarray:
            shape, dtype = self._specs[name]
            return np.zeros((*lead, *shape), dtype)

        def steps(name: str) -> np.ndarray:
            return zeros(name, size, length)

        lead = (size, 1 + length) if self._layout.span == "sequence" else (size,)
        return self._layout.batch(now=steps, before=steps, stored=lambda name: zeros(name, *lead))

    def update_stored(self, ticket: Ticket, stored: Stored) -> None:
        """Replace what is stored with the steps of a sampled batch by what the update computed for it.

        Rows that were overwritten since the batch was drawn are left alone. Where sequences of the batch overlap, the
        later one wins.

        Args:
            ticket: what `sample` returned with the batch.
            stored: ``[B, T, ...]``, with the dtypes of what is stored; ``()`` changes nothing.

        Raises:
            ValueError: if shapes or dtypes differ from the stored ones.
        """
        length = self._config.batch_length
        given = self._layout.stored_fields(stored)
        if not given:
            return
        values = check_fields(given, self._layout.stored_specs, (len(ticket.env), length), "batch to store")
        # Absolute rows [B, T] of the trained steps. Those below the oldest were overwritten: their slot holds another
        # row by now.
        rows = ticket.row[:, None] + np.arange(length)
        present = (rows >= self._oldest) & (rows < self._total)
        # Where an index occurs twice, NumPy's assignment keeps the later value.
        index = self._index(ticket.env, ticket.row, length)[present]
        for name, value in values.items():
            self._storage.flat[name][index] = value[present]
        self._storage.mark_changed(index)

    def close_open_episodes(self) -> None:
        """Mark the newest row of every environment ``is_last``.

        For a resumed run whose environments are reset: their open episodes end here, truncated and not terminal.
        """
        if self._total:
            self._storage.fields["is_last"][(self._total - 1) % self._storage.slots] = True

    def contents(self) -> dict[str, np.ndarray]:
        """Copies of every field of the rows held, ``[N, rows, ...]``, oldest first."""
        slots = np.arange(self._oldest, self._total) % self._storage.slots
        return {name: np.swapaxes(field[slots], 0, 1).copy() for name, field in self._storage.fields.items()}

    def commit(self) -> dict[str, Any]:
        """Bring the files up to date, and return what finds their contents again, for a checkpoint.

        Takes time only for what is new. Then call `flush`, perhaps in another thread, and save the result; when both
        are done, call `confirm`. Meanwhile rows may be added and latents written.

        Returns:
            Small arrays under ``fields``, and counters and the random state, ready for JSON.

        Raises:
            RuntimeError: replay is in memory only.
        """
        if self._directory is None:
            raise RuntimeError("This replay is in memory only: give it a directory to keep its contents.")
        commit = self._storage.commit(self._total)
        # The only field of a row that may still change: a reset ends its episode, see `add`.
        newest_is_last = self._storage.fields["is_last"][(self._total - 1) % self._storage.slots].copy()
        hashes = {"hashes/rows": commit.rows, "hashes/latents": commit.latents}
        return {
            "layout": self._description(),
            "fields": hashes | {"newest/is_last": newest_is_last},
            "generation": commit.generation,
            "rows_total": self._total,
            "rows_lost": self._floor,
            "fresh_row": self._fresh_row,
            "fresh_env": self._fresh_env,
            "rng": copying.deepcopy(self._rng.bit_generator.state),
        }

    def flush(self) -> None:
        """Wait until the disk holds what the last `commit` recorded."""
        self._storage.flush()

    def confirm(self) -> None:
        """Declare that the last `commit` is flushed, and its result saved."""
        self._storage.confirm()

    def restore(self, state: dict[str, Any]) -> str:
        """Continue from what `commit` returned; sampling then goes on bit for bit as it would have.

        Batch size, batch length and ``online`` may differ from the saved run. The number of environments, the capacity
        in rows, and the keys, shapes and dtypes of all fields may not.

        Returns:
            What was damaged and is left out, in words; empty if everything was intact.

        Raises:
            ValueError: naming the first difference; replay and files are unchanged then.
        """
        parts = ("layout", "fields", "generation", "rows_total", "rows_lost", "fresh_row", "fresh_env", "rng")
        missing = [part for part in parts if part not in state]
        if missing:
            raise ValueError(f"The saved replay lacks '{missing[0]}'.")
        check_same(dict(state["layout"]), self._description())
        generator = self._rng.bit_generator.state["bit_generator"]
        saved_generator = state["rng"].get("bit_generator")
        if saved_generator != generator:
            raise ValueError(f"The saved replay draws with {saved_generator}, this one with {generator}.")
        arrays = {name: np.asarray(value) for name, value in state["fields"].items()}
        commit = Commit(int(state["generation"]), arrays["hashes/rows"], arrays["hashes/latents"])
        newest = {name.removeprefix("newest/"): value for name, value in arrays.items() if name.startswith("newest/")}
        total = int(state["rows_total"])
        self._opened = Storage(self._specs, self._num_envs, self._rows, self._directory, keep=True)
        whole_from, latents_lost = self._opened.restore(total, commit, newest)
        # Rows that are forgotten anyway are not lost: an intact replay is the saved one in all its numbers.
        lost_before = int(state["rows_lost"])
        lost = whole_from - max(lost_before, total - self._rows, 0)
        self._total = total
        self._floor = whole_from if lost > 0 else lost_before
        self._fresh_row = int(state["fresh_row"])
        self._fresh_env = int(state["fresh_env"])
        self._rng.bit_generator.state = state["rng"]
        damage = []
        if lost > 0:
            damage.append(f"the oldest {lost * self._num_envs:,} of its steps, up to the newest damage, are left out")
        if latents_lost:
            damage.append(f"{latents_lost} blocks of its latents are zeros until updates refresh them")
        return f"The files of replay in {self._directory} are damaged: {', and '.join(damage)}." if damage else ""

    @property
    def _storage(self) -> Storage:
        if self._opened is None:
            self._opened = Storage(self._specs, self._num_envs, self._rows, self._directory)
        return self._opened

    @property
    def _oldest(self) -> int:
        return max(self._floor, self._total - self._rows)

    def _description(self) -> dict[str, Any]:
        return {"environments": self._num_envs, "rows": self._rows, **describe(self._specs)}

    def _index(self, env: np.ndarray, row: np.ndarray, length: int) -> np.ndarray:
        """Flat indices ``[B, length]`` of consecutive rows from ``row [B]`` on, around the end of the ring."""
        slots = (row[:, None] + np.arange(length)) % self._storage.slots
        # A slot holds N steps next to each other, one for each environment.
        return slots * self._num_envs + env[:, None]

    def _draw_uniform(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Environments and context rows, each ``[count]``, of sequences that lie entirely within the ring."""
        # A context must be followed by T rows, so the last T rows held cannot be one.
        starts = self._total - self._oldest - self._config.batch_length
        # One draw stands for a pair: number n is start n mod starts of environment n // starts.
        env, start = np.divmod(self._rng.integers(0, self._num_envs * starts, count), starts)
        return env, self._oldest + start

    def _take_fresh(self) -> tuple[np.ndarray, np.ndarray]:
        """Environments and context rows of up to B sequences not used before, oldest first; they count as used now.

        The online queue of the official replay. Its sequences tile the rows: the context of one is the last row of
        the one before. As rows complete for all environments at once, the queue is only a position on that grid.
        """
        length = self._config.batch_length
        # If the next context was overwritten, move on by whole tiles, rounded up, to the first one that is present. All
        # environments begin with it.
        behind = self._oldest - self._fresh_row
        if behind > 0:
            self._fresh_row += -(-behind // length) * length
            self._fresh_env = 0
        # Tiles whose T rows after the context are all there. Each has a sequence for every environment, of which those
        # before `_fresh_env` are used.
        complete = max(0, (self._total - 1 - self._fresh_row) // length)
        count = min(self._config.batch_size, complete * self._num_envs - self._fresh_env) if complete else 0
        # Go through the environments of a tile, then on to the next tile.
        tile, env = np.divmod(self._fresh_env + np.arange(count), self._num_envs)
        context = self._fresh_row + tile * length
        # The position after the last one taken is the next to be used.
        tiles, self._fresh_env = divmod(self._fresh_env + count, self._num_envs)
        self._fresh_row += tiles * length
        return env, context


def read_contents(directory: pathlib.Path, state: dict[str, Any]) -> dict[str, np.ndarray]:
    """What `Replay.contents` was at a `Replay.commit`, read without checking or changing anything.

    Args:
        directory: where the files are.
        state: what `Replay.commit` returned, the last but one at the oldest.

    Raises:
        FileNotFoundError, ValueError: the files are gone, or too short.
    """
    layout = dict(state["layout"])
    num_envs = layout.pop("environments")
    rows = layout.pop("rows")
    fields = storage.read(
        directory, specs_of(layout), num_envs, rows, total=int(state["rows_total"]), generation=int(state["generation"])
    )
    return {name: np.swapaxes(field, 0, 1) for name, field in fields.items()}
