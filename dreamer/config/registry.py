"""Choices by name: what a config key may say, and where the code of each choice is."""

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dreamer.config.fields import ConfigError


class Registry(Mapping[str, str]):
    """Names that a config key may take, each with ``package.module:function``, which is imported when asked for.

    A choice of your own needs no entry: the key may also be ``package.module:function`` itself.

    Args:
        key: the config key, for messages.
        places: ``package.module:function`` by name.
    """

    def __init__(self, key: str, places: Mapping[str, str]):
        self._key = key
        self._places = dict(places)

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
            near = difflib.get_close_matches(name, self._places, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(
                f"{self._key}={name} cannot be used.{hint} Expected one of {', '.join(self._places)}, or "
                "package.module:function for your own."
            )
        try:
            found = getattr(importlib.import_module(module), function, None)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self._key}={name} cannot be used: there is no module '{error.name}'. Install it, or run where "
                "Python finds it."
            ) from error
        if not callable(found):
            raise ConfigError(f"{self._key}={name} cannot be used: '{module}' has no function '{function}'.")
        return found


__all__ = ["Registry"]
