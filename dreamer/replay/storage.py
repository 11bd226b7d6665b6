"""The arrays of replay: a ring of rows, in memory or in files that survive the process.

In a directory, every field except the latents is one memory-mapped file of ``slots`` rows. A new row is written there
and nowhere else, so the kernel may page old rows out, and nothing has to be copied to keep them. There are more slots
than rows in use, so that the rows overwritten first are those that no checkpoint needs any more.

Latents change all the time, so they live in memory, with two copies in files that take turns: each `commit` brings the
older copy up to date, and the other one still belongs to the checkpoint before. Only latents that changed are written.

Contents are hashed in blocks of rows, and the hashes belong in the checkpoint. What a crash, a full disk or a flipped
bit did to the files is found when they are opened again.
"""

import math
import os
import pathlib
import shutil
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import xxhash

from dreamer.replay.layout import Specs, bytes_per_step, is_stored
from dreamer.spaces import portable

COPIES = 2
"""Checkpoints whose contents can be restored: copies of the latents."""

_BLOCK_BYTES = 2**22
"""Largest block of rows that are hashed together."""

_BLOCK_ROWS = 1024
"""Most rows in it."""

_SPARE_BLOCKS = 16
"""Fewest blocks of slots beyond those in use."""


class ReplayDiskError(OSError):
    """The file system has no room for more rows, or refuses them; nothing was changed."""


class Commit(NamedTuple):
    """What a checkpoint keeps of a ring, to find its contents again and to verify that they are intact."""

    generation: int
    """Which copy of the latents: ``generation % COPIES``."""
    rows: np.ndarray
    """Hashes of the blocks from that of the oldest row on, uint64 ``[blocks]``."""
    latents: np.ndarray
    """Hashes of the blocks of slots in use, uint64 ``[blocks]``."""


class Size(NamedTuple):
    """How a ring of ``rows`` rows is laid out."""

    block: int
    """Rows that are hashed together."""
    slots: int
    """Rows that there is room for: those in use, and those that an older checkpoint needs; a multiple of ``block``."""

    @classmethod
    def of(cls, specs: Specs, num_envs: int, rows: int) -> "Size":
        """The size of a ring in a directory."""
        block = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (num_envs * bytes_per_step(specs))))
        spare = max(rows // 4, _SPARE_BLOCKS * block)
        return cls(block, math.ceil((rows + spare) / block) * block)


def disk_bytes(specs: Specs, num_envs: int, rows: int) -> int:
    """Bytes that the files of a ring take at most."""
    slots = Size.of(specs, num_envs, rows).slots
    latents = {name: spec for name, spec in specs.items() if is_stored(name)}
    return slots * num_envs * (bytes_per_step(specs) + (COPIES - 1) * bytes_per_step(latents))


class Storage:
    """Arrays of ``slots`` rows; row r lies in slot ``r % slots``.

    Args:
        specs: shapes and dtypes of the fields.
        num_envs: environments N of a row.
        rows: rows in use at a time.
        directory: where the files are; None: everything in memory, and nothing can be committed.
        keep: whether to use what the files hold; otherwise they are deleted first.

    Attributes:
        fields: every field by name, ``[slots, N, ...]``.
        flat: the same memory as ``[slots * N, ...]``.
        slots: see `Size`.
    """

    def __init__(
        self, specs: Specs, num_envs: int, rows: int, directory: pathlib.Path | None = None, keep: bool = False
    ) -> None:
        self._num_envs = num_envs
        self._rows = rows
        self._directory = directory
        size = Size(block=rows, slots=rows) if directory is None else Size.of(specs, num_envs, rows)
        self.slots = size.slots
        self._block = size.block
        shapes = {name: (self.slots, num_envs, *shape) for name, (shape, _) in specs.items()}
        dtypes = {name: dtype for name, (_, dtype) in specs.items()}
        self._files: dict[str, np.memmap] = {}
        self._copies: list[dict[str, np.memmap]] = []
        if directory is not None:
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True, exist_ok=True)
            stored = [name for name in specs if not is_stored(name)]
            self._files = {name: _map(_path(directory, name), shapes[name], dtypes[name]) for name in stored}
            latents = [name for name in specs if is_stored(name)]
            self._copies = [
                {name: _map(_path(directory, name, copy), shapes[name], portable(dtypes[name])) for name in latents}
                for copy in range(COPIES)
            ]
        self.fields: dict[str, np.ndarray] = {
            name: self._files[name] if name in self._files else np.zeros(shapes[name], dtypes[name]) for name in specs
        }
        # Plain arrays, because indexing a memmap costs several microseconds.
        self.fields = {name: field.view(np.ndarray) for name, field in self.fields.items()}
        # One flat index, slot * N + environment, finds a step of any environment.
        self.flat = {
            name: field.reshape(self.slots * num_envs, *field.shape[2:]) for name, field in self.fields.items()
        }
        self._latents = {name: self.flat[name].view(portable(dtypes[name])) for name in specs if is_stored(name)}
        # Slots before this one have room on disk.
        self._backed = 0
        blocks = self.slots // self._block
        self._row_hashes = np.zeros(blocks, np.uint64)
        self._latent_hashes = np.zeros(blocks, np.uint64)
        # For each copy of the latents, the flat places where it differs from memory.
        self._stale = [np.zeros(self.slots * num_envs, bool) for _ in self._copies]
        self._generation = 0
        # Total numbers of rows at the commits whose rows must not be overwritten, oldest first.
        self._ends: list[int] = []
        # Rows before this one were hashed by a commit.
        self._hashed = 0

    def reserve(self, row: int) -> None:
        """Claim room on disk for a row, before it is written.

        Writing to a mapped file beyond what the file system can hold kills the process.

        Raises:
            ReplayDiskError: there is none.
        """
        slot = row % self.slots
        if self._directory is None or slot < self._backed:
            return
        end = (slot // self._block + 1) * self._block
        self._claim(end)

    def mark_changed(self, index: np.ndarray | slice) -> None:
        """Note that latents at these places of the flat arrays were changed."""
        for stale in self._stale:
            stale[index] = True

    def due(self, total: int) -> bool:
        """Whether adding row ``total`` would overwrite what the older of the last two commits needs."""
        if len(self._ends) < COPIES:
            return False
        # The older commit needs the rows from its oldest on, and with it the whole block that is hashed together.
        needed = max(0, self._ends[0] - self._rows) // self._block * self._block
        # Row `total` lies where row `total - slots` was.
        return total - self.slots >= needed

    def commit(self, total: int) -> Commit:
        """Bring files and hashes up to date; ``total`` rows were ever added. Then call `flush`, and later `confirm`.

        Takes time only for what is new. Until it is confirmed, the next commit replaces this one.
        """
        # Write the latents that changed since this copy was last written, block by block.
        which = self._generation % COPIES
        stale = self._stale[which].reshape(-1, self._block * self._num_envs)
        for block in np.flatnonzero(stale.any(1)).tolist():
            # Place in the block, plus the places of all blocks before it: a flat index.
            index = block * stale.shape[1] + np.flatnonzero(stale[block])
            for name, copy in self._copies[which].items():
                copy.reshape(-1, *copy.shape[2:]).view(np.ndarray)[index] = self._latents[name][index]
            self._latent_hashes[block] = self._hash(self._latents, block, self._block)
        stale[:] = False
        # Hash the blocks with rows that are new. Start with that of the last row hashed, which may have become the last
        # of its episode since.
        oldest = max(0, total - self._rows) // self._block
        end = math.ceil(total / self._block)
        for block in range(max(oldest, max(0, self._hashed - 1) // self._block), end):
            self._row_hashes[self._slot_block(block)] = self._hash_rows(block, total)
        self._hashed = total
        self._ends = [*self._ends[-(COPIES - 1) :], total]
        blocks = [self._slot_block(block) for block in range(oldest, end)]
        used = math.ceil(min(total, self.slots) / self._block)
        return Commit(self._generation, self._row_hashes[blocks], self._latent_hashes[:used].copy())

    def flush(self) -> None:
        """Wait until the disk holds what was committed, even if the machine crashes. Safe in another thread."""
        for field in self._files.values():
            field.flush()
        for copy in self._copies[self._generation % COPIES].values():
            copy.flush()

    def confirm(self) -> None:
        """Declare the last commit saved; the next one leaves its latents alone."""
        self._generation += 1

    def restore(self, total: int, commit: Commit, newest: dict[str, np.ndarray]) -> tuple[int, int]:
        """Read the contents as of a commit.

        Args:
            total: rows ever added by then.
            commit: what `commit` returned.
            newest: values of the last row that may have changed since, by field.

        Returns:
            The row from which on everything is intact, and how many blocks of latents were not and are zeros now.
        """
        used = math.ceil(min(total, self.slots) / self._block)
        self._claim(used * self._block)
        for name, value in newest.items():
            if total:
                self.fields[name][(total - 1) % self.slots] = value
        oldest = max(0, total - self._rows) // self._block
        blocks = range(oldest, math.ceil(total / self._block))
        copy = self._copies[commit.generation % COPIES]
        with ThreadPoolExecutor(4) as pool:  # Hashing and copying let go of the interpreter's lock.
            hashes = list(pool.map(lambda block: self._hash_rows(block, total), blocks))
            found = list(pool.map(lambda block: self._read(copy, block), range(used)))
        intact = [a == b for a, b in zip(hashes, commit.rows.tolist(), strict=True)]
        # Keep the blocks after the newest damaged one.
        first = max((block + 1 for block, fine in zip(blocks, intact, strict=True) if not fine), default=oldest)
        # Only the copy that was read is the same as memory.
        self._stale = [np.zeros(self.slots * self._num_envs, bool) for _ in self._copies]
        for stale in self._stale:
            stale[: used * self._block * self._num_envs] = True
        self._stale[commit.generation % COPIES][:] = False
        lost = [block for block in range(used) if found[block] != commit.latents[block]]
        for block in lost:
            places = slice(block * self._block * self._num_envs, (block + 1) * self._block * self._num_envs)
            for latent in self._latents.values():
                latent[places] = 0
            self.mark_changed(places)
        self._latent_hashes[:used] = commit.latents
        self._row_hashes[[self._slot_block(block) for block in blocks]] = commit.rows
        self._generation = commit.generation + 1
        self._hashed = total
        self._ends = [total]
        return max(first * self._block, total - self._rows, 0), len(lost)

    def _claim(self, end: int) -> None:
        """Have the file system set aside the slots before ``end``."""
        for file in (*self._files.values(), *(file for copy in self._copies for file in copy.values())):
            begin = min(self._backed, end) * file[0].nbytes
            stop = end * file[0].nbytes
            if stop == begin:
                continue
            try:
                with open(str(file.filename), "r+b") as handle:
                    os.posix_fallocate(handle.fileno(), begin, stop - begin)
            except OSError as error:
                raise ReplayDiskError(
                    error.errno,
                    f"No room for more of the replay in {self._directory} ({error.strerror}): free some "
                    f"{(stop - begin) * 2 / 1e6:.0f} MB or more",
                ) from error
        self._backed = max(self._backed, end)

    def _slot_block(self, block: int) -> int:
        """The block of slots in which a block of absolute rows lies."""
        return block % (self.slots // self._block)

    def _hash_rows(self, block: int, total: int) -> int:
        """Hash of a block of absolute rows, of which the last may have fewer than the others."""
        files = {name: self.flat[name] for name in self._files}
        return self._hash(files, self._slot_block(block), min(self._block, total - block * self._block))

    def _hash(self, arrays: dict[str, np.ndarray], block: int, rows: int) -> int:
        """Hash of the first rows of a block of slots."""
        start = block * self._block * self._num_envs
        digest = xxhash.xxh3_64()
        for array in arrays.values():
            digest.update(array[start : start + rows * self._num_envs].data.cast("B"))
        return digest.intdigest()

    def _read(self, copy: dict[str, np.memmap], block: int) -> int:
        """Read the latents of a block of slots from a file into memory; returns their hash."""
        places = slice(block * self._block, (block + 1) * self._block)
        for name, file in copy.items():
            latents = self._latents[name].reshape(file.shape)
            latents[places] = file[places]
        return self._hash(self._latents, block, self._block)


def read(
    directory: pathlib.Path, specs: Specs, num_envs: int, rows: int, total: int, generation: int
) -> dict[str, np.ndarray]:
    """Every field as of a commit, ``[rows held, N, ...]``, oldest row first; nothing is checked or changed."""
    slots = Size.of(specs, num_envs, rows).slots
    held = np.arange(max(0, total - rows), total) % slots
    fields = {}
    for name, (shape, dtype) in specs.items():
        path = _path(directory, name, generation % COPIES if is_stored(name) else None)
        file = np.memmap(path, portable(dtype), "r", shape=(slots, num_envs, *shape))
        fields[name] = np.asarray(file[held]).view(dtype)
    return fields


def _path(directory: pathlib.Path, name: str, copy: int | None = None) -> pathlib.Path:
    """The file of a field: any key is a file name once its slashes and the like are quoted."""
    return directory / (urllib.parse.quote(name, safe="") + ("" if copy is None else f".{copy}"))


def _map(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """Map a file of exactly this size. What a damaged one lacks reads as zeros."""
    with open(path, "a+b") as file:
        file.truncate(math.prod(shape) * dtype.itemsize)
    return np.memmap(path, dtype, "r+", shape=shape)
