"""Choices by name: what a config key may say, and where the code of each choice is."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dreamer.config.fields import ConfigError


class Registry(Mapping[str, str]):
    """Names that a config key may take, each with ``package.module:function``, which is imported when asked for.

    A choice of your own needs no entry: the key may also be ``package.module:function`` itself.

    Args:
        key: the config key, for messages.
        places: ``package.module:function`` by name.
        also: further words that the key may say, which stand for no function.
    """

    def __init__(self, key: str, places: Mapping[str, str], also: Sequence[str] = ()):
        self._key = key
        self._places = dict(places)
        self._also = tuple(also)

    def __getitem__(self, name: str) -> str:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def load(self, name: str) -> Callable[..., Any]:
        """The function that a name stands for.

        Raises:
            ConfigError: there is no such name (the message has the nearest), module or function.
        """
        place = self._places.get(name, name)
        module, colon, function = place.partition(":")
        if not colon:
            words = [*self._also, *self._places]
            near = difflib.get_close_matches(name, words, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(
                f"{self._key}={name} cannot be used.{hint} Expected one of {', '.join(words)}, or "
                "package.module:function for your own."
            )
        # An installed command does not look for modules in the working directory by itself.
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())
        try:
            found = getattr(importlib.import_module(module), function, None)
        except ImportError as error:
            raise ConfigError(
                f"{self._key}={name} cannot be used: importing {module} failed with {type(error).__name__}: {error}. "
                "Expected package.module:function, with the package installed or in the working directory."
            ) from error
        if not callable(found):
            raise ConfigError(f"{self._key}={name} cannot be used: '{module}' has no function '{function}'.")
        return found


__all__ = ["Registry"]
