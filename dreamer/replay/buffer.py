"""Replay on the host: a ring of steps, sequences drawn from it, and what updates write back into it.

All environments step together, so a *row* is one step of all N of them. Rows are counted from 0 forever, and a row is
present while it is among the last ``rows``. Counting absolutely is what lets a late write to a row that was overwritten
meanwhile be recognised and dropped. Timing: see `dreamer.types`. Where the rows lie: see `dreamer.replay.storage`.

Sequences cross episode borders on purpose; ``is_first`` makes that correct, nothing is cut or padded.
"""

import copy as copying
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
import psutil

from dreamer.config import ConfigError, ReplayConfig
from dreamer.replay import storage as ring
from dreamer.replay.layout import (
    Layout,
    bytes_per_step,
    check_disk,
    check_fields,
    check_memory,
    check_same,
    describe,
    is_stored,
    specs_of,
)
from dreamer.replay.storage import Commit, Storage, disk_bytes
from dreamer.types import Batch, Step, Stored


class Ticket(NamedTuple):
    """Where the B sequences of a batch came from: ``env [B]`` and ``row [B]``, both int64.

    ``row`` is the absolute row of the first trained step, index 0 of the batch's ``[B, T]`` fields.
    """

    env: np.ndarray
    row: np.ndarray


class Replay:
    """The last ``config.capacity`` steps of N environments.

    Memory and disk are claimed as they are needed, but the full size is checked before anything is allocated, so
    that a run which cannot finish does not start. Not safe for use from several threads at once, but for `flush`.

    Args:
        config: capacity, batch size B, batch length T, and whether fresh sequences are used first.
        num_envs: N, environments that step together.
        layout: what a row holds, from `Layout.of`.
        rng: draws the sequences. Owned by this replay from here on; its state is part of `commit`.
        available_bytes: memory that may be used; None asks the operating system.
        directory: where the files are, which only this replay may use; None: everything is in memory, and `commit`
            is not possible. Files of a replay before are replaced with the first `add`, unless `restore` comes first.

    Attributes:
        memory_bytes, disk_bytes: what a full ring takes at most. The system also keeps in memory what it likes of the
            files, and gives that up when it is needed.

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
        self._config, self._num_envs, self._rng = config, num_envs, rng
        self._rows = config.capacity // num_envs
        self._ready_rows = max(config.batch_length + 1, math.ceil(config.batch_size * config.batch_length / num_envs))
        if self._rows < self._ready_rows:
            raise ConfigError(
                f"replay.capacity={config.capacity} cannot be used: {num_envs} environments with batches of "
                f"{config.batch_size} x {config.batch_length} steps need at least {self._ready_rows * num_envs}."
            )
        self._layout = layout
        self._specs = layout.specs
        if available_bytes is None:
            available_bytes = psutil.virtual_memory().available
        self._directory = directory
        in_memory = {name: spec for name, spec in self._specs.items() if directory is None or is_stored(name)}
        check_memory(config.capacity, num_envs, bytes_per_step(in_memory), available_bytes)
        self.memory_bytes = self._rows * num_envs * bytes_per_step(in_memory)
        self.disk_bytes = 0 if directory is None else disk_bytes(self._specs, num_envs, self._rows)
        if directory is not None:
            check_disk(directory, config.capacity, self.disk_bytes)
        self._opened: Storage | None = None
        self._total = 0
        # Rows before this one were lost, not forgotten.
        self._floor = 0
        # The next fresh sequence: its context row, and the first environment that has not used it.
        self._fresh_row, self._fresh_env = 0, 0

    @property
    def rows_total(self) -> int:
        """Rows ever added; the next `add` writes this absolute row."""
        return self._total

    @property
    def steps(self) -> int:
        """Steps held now, over all environments."""
        return (self._total - self._oldest) * self._num_envs

    @property
    def unclaimed_bytes(self) -> int:
        """Memory that a full ring will take beyond what the steps held now take."""
        return self.memory_bytes - self.steps * (self.memory_bytes // (self._rows * self._num_envs))

    @property
    def commit_due(self) -> bool:
        """Whether it is time for another `commit`: the next `add` overwrites what the one before the last needs."""
        return self._opened is not None and self._opened.due(self._total)

    @property
    def ready(self) -> bool:
        """Whether `sample` can answer: one sequence of T + 1 rows, and B * T steps in all, are held."""
        return self._total - self._oldest >= self._ready_rows

    def add(self, step: Step, action: dict[str, np.ndarray], stored: Stored) -> None:
        """Append one row by copying; the oldest row is forgotten when the ring is full.

        An environment that is reset before its episode ended leaves a row that is not ``is_last`` followed by one that
        is ``is_first``. The episode was abandoned; its last row becomes ``is_last`` now, as otherwise the return of
        that step would be bootstrapped through the reset. Official ``replay.py:_annotate_batch`` does it in sampling.

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
        held = self._ring
        held.reserve(self._total)
        if self._total:
            held.fields["is_last"][(self._total - 1) % held.slots] |= values["is_first"]
        slot = self._total % held.slots
        for name, value in values.items():
            held.fields[name][slot] = value
        held.touched(slice(slot * self._num_envs, (slot + 1) * self._num_envs))
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
        env, context = self._fresh() if self._config.online else (np.zeros(0, np.int64), np.zeros(0, np.int64))
        drawn_env, drawn_context = self._uniform(self._config.batch_size - len(env))
        env, context = np.concatenate([env, drawn_env]), np.concatenate([context, drawn_context])
        return self._gather(env, context), Ticket(env=env, row=context + 1)

    def newest(self, count: int) -> Batch:
        """The last sequences of up to ``count`` environments, and if these are fewer, those just before them as well.

        Where there are no more, they overlap. Draws no random numbers and counts as no use, so it changes nothing of
        what follows. Call it when `ready`.
        """
        back, env = np.divmod(np.arange(count), self._num_envs)
        context = self._total - 1 - self._config.batch_length * (back + 1)
        return self._gather(env, np.maximum(context, self._oldest))

    def _gather(self, env: np.ndarray, context: np.ndarray) -> Batch:
        """Copies of sequences from the row after ``context [B]`` on, in environments ``env [B]``."""
        index = self._index(env, context, self._config.batch_length + 1)
        # One row more than the batch has steps: the previous action of each step is in the row before it.
        before, now = index[:, :-1], index[:, 1:]
        stored = index if self._layout.span == "sequence" else index[:, 0]
        flat = self._ring.flat
        return self._layout.batch(
            now=lambda name: flat[name].take(now, axis=0),
            before=lambda name: flat[name].take(before, axis=0),
            stored=lambda name: flat[name].take(stored, axis=0),
        )

    def blank_batch(self, size: int | None = None) -> Batch:
        """Zeros with the keys, shapes and dtypes of what `sample` returns, or of ``size`` sequences."""
        size, length = self._config.batch_size if size is None else size, self._config.batch_length

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
        rows = ticket.row[:, None] + np.arange(length)
        present = (rows >= self._oldest) & (rows < self._total)
        index = self._index(ticket.env, ticket.row, length)[present]
        for name, value in values.items():
            self._ring.flat[name][index] = value[present]
        self._ring.touched(index)

    def close_open_episodes(self) -> None:
        """Mark the newest row of every environment ``is_last``.

        For a resumed run whose environments start anew: their open episodes end here, truncated and not terminal.
        """
        if self._total:
            self._ring.fields["is_last"][(self._total - 1) % self._ring.slots] = True

    def contents(self) -> dict[str, np.ndarray]:
        """Copies of every field of the rows held, ``[N, rows, ...]``, oldest first."""
        slots = np.arange(self._oldest, self._total) % self._ring.slots
        return {name: np.swapaxes(field[slots], 0, 1).copy() for name, field in self._ring.fields.items()}

    def commit(self) -> dict[str, Any]:
        """Take down the contents in the files, and return what finds them again, for a checkpoint.

        Takes time for what is new only. Then call `flush`, perhaps in another thread, and write the result down; when
        both are done, call `confirm`. Meanwhile rows may be added and latents written.

        Returns:
            Small arrays under ``fields``, and counters and the random state, ready for JSON.

        Raises:
            RuntimeError: replay is in memory only.
        """
        if self._directory is None:
            raise RuntimeError("This replay is in memory only: give it a directory to keep its contents.")
        commit = self._ring.commit(self._total)
        newest = {name: self._ring.fields[name][(self._total - 1) % self._ring.slots] for name in ("is_last",)}
        arrays = {"hashes/rows": commit.rows, "hashes/latents": commit.latents}
        return {
            "layout": self._description(),
            "fields": arrays | {f"newest/{name}": value.copy() for name, value in newest.items()},
            "generation": commit.generation,
            "rows_total": self._total,
            "rows_lost": self._floor,
            "fresh_row": self._fresh_row,
            "fresh_env": self._fresh_env,
            "rng": copying.deepcopy(self._rng.bit_generator.state),
        }

    def flush(self) -> None:
        """Wait until the disk holds what the last `commit` took down."""
        self._ring.flush()

    def confirm(self) -> None:
        """The last `commit` is flushed and written down."""
        self._ring.confirm()

    def restore(self, state: dict[str, Any]) -> str:
        """Continue from what `commit` returned; sampling then goes on bit for bit as it would have.

        Batch size, batch length and ``online`` may differ from the saved run. The number of environments, the capacity
        in rows, and the keys, shapes and dtypes of all fields may not.

        Returns:
            What was damaged and is left out, in words; empty if everything was whole.

        Raises:
            ValueError: naming the first difference; replay and files are unchanged then.
        """
        parts = ("layout", "fields", "generation", "rows_total", "rows_lost", "fresh_row", "fresh_env", "rng")
        missing = [part for part in parts if part not in state]
        if missing:
            raise ValueError(f"The saved replay lacks '{missing[0]}'.")
        check_same(dict(state["layout"]), self._description())
        generator, saved_generator = self._rng.bit_generator.state["bit_generator"], state["rng"].get("bit_generator")
        if saved_generator != generator:
            raise ValueError(f"The saved replay draws with {saved_generator}, this one with {generator}.")
        arrays = {name: np.asarray(value) for name, value in state["fields"].items()}
        commit = Commit(int(state["generation"]), arrays["hashes/rows"], arrays["hashes/latents"])
        newest = {name.removeprefix("newest/"): value for name, value in arrays.items() if name.startswith("newest/")}
        total = int(state["rows_total"])
        self._opened = Storage(self._specs, self._num_envs, self._rows, self._directory, keep=True)
        whole_from, latents_lost = self._opened.restore(total, commit, newest)
        # What is forgotten anyway is not lost: a replay that is whole is the one that was saved, in all its numbers.
        lost_before = int(state["rows_lost"])
        lost = whole_from - max(lost_before, total - self._rows, 0)
        self._total, self._floor = total, whole_from if lost > 0 else lost_before
        self._fresh_row, self._fresh_env = int(state["fresh_row"]), int(state["fresh_env"])
        self._rng.bit_generator.state = state["rng"]
        said = []
        if lost > 0:
            said.append(f"the oldest {lost * self._num_envs:,} of its steps, up to the newest damage, are left out")
        if latents_lost:
            said.append(f"{latents_lost} blocks of its latents are zeros until updates refresh them")
        return f"The files of replay in {self._directory} are damaged: {', and '.join(said)}." if said else ""

    @property
    def _ring(self) -> Storage:
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
        return (row[:, None] + np.arange(length)) % self._ring.slots * self._num_envs + env[:, None]

    def _uniform(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Environments and context rows, each ``[count]``, of sequences that lie entirely within the ring."""
        starts = self._total - self._oldest - self._config.batch_length
        env, start = np.divmod(self._rng.integers(0, self._num_envs * starts, count), starts)
        return env, self._oldest + start

    def _fresh(self) -> tuple[np.ndarray, np.ndarray]:
        """Environments and context rows of up to B sequences not used before, oldest first; they count as used now.

        The online queue of the official replay. Its sequences tile the rows: the context of one is the last row of
        the one before. As rows complete for all environments at once, the queue is only a position on that grid.
        """
        length, behind = self._config.batch_length, self._oldest - self._fresh_row
        if behind > 0:
            self._fresh_row += -(-behind // length) * length
            self._fresh_env = 0
        complete = max(0, (self._total - 1 - self._fresh_row) // length)
        count = min(self._config.batch_size, complete * self._num_envs - self._fresh_env) if complete else 0
        tile, env = np.divmod(self._fresh_env + np.arange(count), self._num_envs)
        context = self._fresh_row + tile * length
        tiles, self._fresh_env = divmod(self._fresh_env + count, self._num_envs)
        self._fresh_row += tiles * length
        return env, context


def read_contents(directory: pathlib.Path, state: dict[str, Any]) -> dict[str, np.ndarray]:
    """What `Replay.contents` was at a `Replay.commit`, for those who only want to look; checks and changes nothing.

    Args:
        directory: where the files are.
        state: what `Replay.commit` returned, the last but one at the oldest.

    Raises:
        FileNotFoundError, ValueError: the files are gone, or too short.
    """
    layout = dict(state["layout"])
    num_envs, rows = layout.pop("environments"), layout.pop("rows")
    fields = ring.read(directory, specs_of(layout), num_envs, rows, int(state["rows_total"]), int(state["generation"]))
    return {name: np.swapaxes(field, 0, 1) for name, field in fields.items()}
