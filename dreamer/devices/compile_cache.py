"""Compiled programs kept on disk: a restarted run, or the next seed, does not compile again."""

import hashlib
import os
import pathlib
import platform

import jax

_MOST_BYTES = 2 * 2**30
"""Beyond this, the least recently used programs are deleted."""

_LEAST_SECONDS = 0.5
"""Programs that compile faster are not worth a file."""


def keep_compiled_programs() -> pathlib.Path | None:
    """Let JAX keep what it compiles under the user's cache directory (``XDG_CACHE_HOME``, or ``~/.cache``).

    Does nothing if a directory was chosen already, with ``JAX_COMPILATION_CACHE_DIR`` for example, or if the directory
    cannot be written. ``JAX_ENABLE_COMPILATION_CACHE=false`` switches it off.

    Returns:
        The directory, if it is now in use.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return None
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    path = root / "dreamer" / f"compiled-{_machine()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            return None
    except (OSError, RuntimeError):  # RuntimeError: there is no home.
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    return path


def keep_names() -> None:
    """Take only programs from the cache whose operations have the names that the source gives them now.

    Names are no part of what is computed, so JAX would also take those compiled from another version of the source.
    """
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)


def _machine() -> str:
    """Ten hexadecimal digits for the kind of processor.

    Home directories are often shared, and a program for one processor crashes on another that lacks its instructions.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        kind = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        kind = []
    return hashlib.sha256("\n".join([platform.machine(), platform.processor(), *kind]).encode()).hexdigest()[:10]
