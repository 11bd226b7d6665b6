"""Switches of JAX that a run cannot use are refused, and so is a machine without the devices it should use."""

import contextlib

import jax
import pytest

from dreamer.config import ConfigError
from dreamer.devices import backend


@pytest.mark.parametrize(
    ("switched", "name"),
    [
        (lambda: jax.enable_x64(True), "JAX_ENABLE_X64"),
        (lambda: jax.numpy_dtype_promotion("strict"), "JAX_NUMPY_DTYPE_PROMOTION"),
    ],
)
def test_switches_that_change_every_dtype_are_refused(switched, name):
    with switched(), pytest.raises(ConfigError, match=f"unset {name} in the shell, or remove jax.config.update"):
        backend.refuse_switches()


@pytest.mark.parametrize("switched", [contextlib.nullcontext, lambda: jax.debug_nans(True)])
def test_other_switches_are_left_alone(switched):
    with switched():
        backend.refuse_switches()


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda': no GPU"), AssertionError()])
def test_a_machine_without_the_devices_it_should_use_is_a_sentence(monkeypatch, error):
    def fail():
        raise error

    assert backend.local_devices() == jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", fail)
    with pytest.raises(ConfigError, match=r"JAX cannot use any device \(.+\), expected at least one: .*dreamer.doctor"):
        backend.local_devices()
