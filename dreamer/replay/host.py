"""Replay in host memory: a ring of steps, sequences drawn from it, and latents written back into it.

All environments step together, so a *row* is one step of all N of them. Rows are counted from 0 forever; row r lives in
slot ``r % rows`` and is present while it is among the last ``rows``. Counting absolutely is what lets a late write to a
row that was overwritten meanwhile be recognised and dropped. Timing: see `dreamer.types`.

Sequences cross episode borders on purpose; ``is_first`` makes that correct, nothing is cut or padded.
"""

import copy as copying
import math
from typing import Any, NamedTuple

import numpy as np
import psutil

from dreamer.config import ConfigError, ReplayConfig
from dreamer.replay.layout import (
    LatentSpec,
    by_name,
    bytes_per_step,
    check_memory,
    check_same,
    checked,
    field_specs,
    portable,
)
from dreamer.types import Batch, Spaces, Step, StoredLatent


class Ticket(NamedTuple):
    """Where the B sequences of a batch came from: ``env [B]`` and ``row [B]``, both int64.

    ``row`` is the absolute row of the first trained step, index 0 of the batch's ``[B, T]`` fields.
    """

    env: np.ndarray
    row: np.ndarray


class Replay:
    """The last ``config.capacity`` steps of N environments.

    Memory is claimed lazily by the operating system, but the full size is checked before anything is allocated, so
    that a run which cannot finish does not start. Not safe for use from several threads at once.

    Args:
        config: capacity, batch size B, batch length T, and whether fresh sequences are used first.
        num_envs: N, environments that step together.
        obs_spaces: one space per observation key.
        action_spaces: one space per action key.
        latent_spec: shapes and dtypes of the stored latent, from `LatentSpec.of`.
        rng: draws the sequences. Owned by this replay from here on; its state is part of `state`.
        available_bytes: memory that may be used; None asks the operating system.

    Raises:
        ConfigError: if the capacity cannot hold one sequence of T + 1 rows and one batch of B * T steps.
        ReplayMemoryError: if the capacity does not fit into memory.
    """

    def __init__(
        self,
        config: ReplayConfig,
        num_envs: int,
        obs_spaces: Spaces,
        action_spaces: Spaces,
        latent_spec: LatentSpec,
        rng: np.random.Generator,
        available_bytes: int | None = None,
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
        self._specs = field_specs(obs_spaces, action_spaces, latent_spec)
        if available_bytes is None:
            available_bytes = psutil.virtual_memory().available
        check_memory(config.capacity, num_envs, bytes_per_step(self._specs), available_bytes)
        self._fields = {name: np.zeros((num_envs, self._rows, *s), d) for name, (s, d) in self._specs.items()}
        # The same memory as [N * rows, ...], so that one flat index finds a step of any environment.
        self._flat = {
            name: field.reshape(num_envs * self._rows, *field.shape[2:]) for name, field in self._fields.items()
        }
        self._obs_keys, self._action_keys = tuple(obs_spaces), tuple(action_spaces)
        self._total = 0
        # The next fresh sequence: its context row, and the first environment that has not used it.
        self._fresh_row, self._fresh_env = 0, 0

    @property
    def rows_total(self) -> int:
        """Rows ever added; the next `add` writes this absolute row."""
        return self._total

    @property
    def steps(self) -> int:
        """Steps held now, over all environments."""
        return min(self._total, self._rows) * self._num_envs

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(field.nbytes for field in self._fields.values())

    @property
    def ready(self) -> bool:
        """Whether `sample` can answer: one sequence of T + 1 rows, and B * T steps in all, are held."""
        return self._total >= self._ready_rows

    def add(self, step: Step, action: dict[str, np.ndarray], latent: StoredLatent) -> None:
        """Append one row by copying; the oldest row is forgotten when the ring is full.

        An environment that is reset before its episode ended leaves a row that is not ``is_last`` followed by one that
        is ``is_first``. The episode was abandoned; its last row becomes ``is_last`` now, as otherwise the return of
        that step would be bootstrapped through the reset. Official ``replay.py:_annotate_batch`` does it in sampling.

        Args:
            step: observations ``[N, ...]``, reward float32 ``[N]`` and flags bool ``[N]``. ``env_steps`` is not kept.
            action: ``[N, ...]`` per key, chosen after ``step.obs``.
            latent: posterior of this step, ``deter [N, D]`` and ``stoch [N, S]``.

        Raises:
            ValueError: if keys, shapes or dtypes are not those of the spaces; replay is unchanged then.
        """
        given = by_name(
            step.obs, action, step.reward, step.is_first, step.is_last, step.is_terminal, latent.deter, latent.stoch
        )
        values = checked(given, self._specs, (self._num_envs,), "step")
        if self._total:
            self._fields["is_last"][:, (self._total - 1) % self._rows] |= values["is_first"]
        slot = self._total % self._rows
        for name, value in values.items():
            self._fields[name][:, slot] = value
        self._total += 1

    def sample(self) -> tuple[Batch, Ticket]:
        """Draw B sequences of T steps, each with the row before it as context.

        The context row gives the stored latent and the previous action of index 0. With ``config.online``, sequences
        never used before come first, then (as without it) every (environment, start) present is equally likely.

        Returns:
            A `Batch` of newly allocated arrays ``[B, T, ...]``, and the `Ticket` for `update_latents`.

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
        index = self._index(env, context, self._config.batch_length + 1)
        before, now = index[:, :-1], index[:, 1:]
        batch = Batch(
            obs={key: self._flat[f"obs/{key}"].take(now, axis=0) for key in self._obs_keys},
            prev_action={key: self._flat[f"action/{key}"].take(before, axis=0) for key in self._action_keys},
            reward=self._flat["reward"].take(now),
            is_first=self._flat["is_first"].take(now),
            is_last=self._flat["is_last"].take(now),
            is_terminal=self._flat["is_terminal"].take(now),
            latent=StoredLatent(
                deter=self._flat["latent/deter"].take(before[:, 0], axis=0),
                stoch=self._flat["latent/stoch"].take(before[:, 0], axis=0),
            ),
        )
        return batch, Ticket(env=env, row=context + 1)

    def update_latents(self, ticket: Ticket, latents: StoredLatent) -> None:
        """Replace the stored latents of a sampled batch by those the update computed for it.

        Rows that were overwritten since the batch was drawn are left alone. Where sequences of the batch overlap, the
        later one wins.

        Args:
            ticket: what `sample` returned with the batch.
            latents: ``deter [B, T, D]`` and ``stoch [B, T, S]``, with the dtypes of the stored latent.

        Raises:
            ValueError: if shapes or dtypes differ from the stored ones.
        """
        length = self._config.batch_length
        given = {"latent/deter": latents.deter, "latent/stoch": latents.stoch}
        specs = {name: self._specs[name] for name in given}
        values = checked(given, specs, (len(ticket.env), length), "batch of latents")
        rows = ticket.row[:, None] + np.arange(length)
        present = (rows >= self._oldest) & (rows < self._total)
        index = self._index(ticket.env, ticket.row, length)[present]
        for name, value in values.items():
            self._flat[name][index] = value[present]

    def close_open_episodes(self) -> None:
        """Mark the newest row of every environment ``is_last``.

        For a resumed run whose environments start anew: their open episodes end here, truncated and not terminal.
        """
        if self._total:
            self._fields["is_last"][:, (self._total - 1) % self._rows] = True

    def state(self, copy: bool = True) -> dict[str, Any]:
        """Everything needed to continue exactly: the rows in use, counters and the random state.

        Arrays under ``fields`` are ``[N, rows in use, ...]`` in order of slots, of dtypes that `numpy.save` knows
        (bfloat16 as uint16). All the rest is ready for JSON.

        Args:
            copy: False gives read-only views of the ring, for rings that do not fit into memory twice. They must be
                written out before the next `add` or `update_latents`.
        """
        used = min(self._total, self._rows)
        fields = {}
        for name, field in self._fields.items():
            view = field[:, :used].view(portable(field.dtype))
            view.flags.writeable = False
            fields[name] = view.copy() if copy else view
        return {
            "layout": self._layout(),
            "fields": fields,
            "rows_total": self._total,
            "fresh_row": self._fresh_row,
            "fresh_env": self._fresh_env,
            "rng": copying.deepcopy(self._rng.bit_generator.state),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; sampling then goes on bit for bit as it would have.

        Batch size, batch length and ``online`` may differ from the saved run. The number of environments, the capacity
        in rows, and the keys, shapes and dtypes of all fields may not.

        Raises:
            ValueError: naming the first difference; replay is unchanged then.
        """
        parts = ("layout", "fields", "rows_total", "fresh_row", "fresh_env", "rng")
        missing = [part for part in parts if part not in state]
        if missing:
            raise ValueError(f"The saved replay lacks '{missing[0]}'.")
        check_same(dict(state["layout"]), self._layout())
        generator, saved_generator = self._rng.bit_generator.state["bit_generator"], state["rng"].get("bit_generator")
        if saved_generator != generator:
            raise ValueError(f"The saved replay draws with {saved_generator}, this one with {generator}.")
        total = int(state["rows_total"])
        used = min(total, self._rows)
        specs = {name: (shape, portable(dtype)) for name, (shape, dtype) in self._specs.items()}
        values = checked(state["fields"], specs, (self._num_envs, used), "saved replay")
        for name, value in values.items():
            self._fields[name].view(value.dtype)[:, :used] = value
        self._total = total
        self._fresh_row, self._fresh_env = int(state["fresh_row"]), int(state["fresh_env"])
        self._rng.bit_generator.state = state["rng"]

    @property
    def _oldest(self) -> int:
        return max(0, self._total - self._rows)

    def _layout(self) -> dict[str, Any]:
        fields = {name: f"{dtype.name}{list(shape)}" for name, (shape, dtype) in self._specs.items()}
        return {"environments": self._num_envs, "rows": self._rows, **fields}

    def _index(self, env: np.ndarray, row: np.ndarray, length: int) -> np.ndarray:
        """Flat indices ``[B, length]`` of consecutive rows from ``row [B]`` on, around the end of the ring."""
        return env[:, None] * self._rows + (row[:, None] + np.arange(length)) % self._rows

    def _uniform(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Environments and context rows, each ``[count]``, of sequences that lie entirely within the ring."""
        starts = min(self._total, self._rows) - self._config.batch_length
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
