"""What goes wrong with environments, as sentences a user can act on."""

import contextlib
from collections.abc import Iterator


class EnvError(RuntimeError):
    """An environment that cannot be made, used or trusted.

    The message says which environment (and step and episode), which key, what was found, what was expected and what to
    do. It is one string, so that it travels between processes unchanged.
    """


class UnknownTask(EnvError):
    """A suite has no task of this name; the caller adds the nearest names that exist."""


class OtherSpaces(EnvError, ValueError):
    """An environment has other observations or actions than an agent was trained on."""


class NotRestorable(EnvError):
    """A state cannot be saved or restored exactly; the message says what, of which environment, and why."""


@contextlib.contextmanager
def not_restorable(sentence: str) -> Iterator[None]:
    """Turn any error into a `NotRestorable` with a sentence, in which ``{}`` stands for the error."""
    try:
        yield
    except NotRestorable:
        raise
    except Exception as error:
        raise NotRestorable(sentence.format(f"{type(error).__name__}: {error}")) from error


class SameEnvironment(EnvError):
    """A function that should make a new environment each time returned the same one twice."""


class Mismatch(ValueError):
    """A value violates its space; the adapter adds which environment and when, and raises `EnvError`."""
