"""Which kind of machine computes, and whether JAX is set up for it. No other file asks JAX for the kind."""

import jax

from dreamer.config import ConfigError

_SWITCHES = {
    "jax_enable_x64": (True, "numbers of 64 bits", "numbers of 32 bits"),
    "jax_numpy_dtype_promotion": ("strict", "strict promotion of dtypes", "the standard promotion"),
}
"""Switches of JAX that a run cannot use: the value, what it means, and what is expected."""


def on_cpu() -> bool:
    """Whether programs run on CPUs; otherwise they run on accelerators, where launching an operation costs more."""
    return jax.default_backend() == "cpu"


def refuse_switches() -> None:
    """Raise `ConfigError` if JAX is switched to what a run cannot use, in the shell or by an environment's module."""
    for name, (value, got, expected) in _SWITCHES.items():
        if getattr(jax.config, name) == value:
            raise ConfigError(
                f"JAX is switched to {got}, expected {expected}: unset {name.upper()} in the shell, or remove "
                f"jax.config.update('{name}', ...) from the environment's code."
            )


def local_devices() -> list[jax.Device]:
    """The devices of this host; raises `ConfigError` if JAX finds none of the kind that it is told to use."""
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: the platform exists, and there is no such device.
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        hint = f"unset JAX_PLATFORMS, which is '{platforms}', or " if platforms else ""
        reason = str(error).strip().split("\n")[0].rstrip(".") or "it found none of the kind it should use"
        raise ConfigError(
            f"JAX cannot use any device ({reason}), expected at least one: {hint}run python -m dreamer.doctor."
        ) from error


__all__ = ["local_devices", "on_cpu", "refuse_switches"]
