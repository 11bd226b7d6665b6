"""The axis of members: which devices share it, and that dividing it changes nothing."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config import ConfigError
from dreamer.devices import batch_axis
from dreamer.devices.member_axis import MemberAxis, member_devices, member_of, on_first, show_cores
from tests.small import same_tree, small_config


@pytest.mark.parametrize(
    ("devices", "members", "count"),
    [
        *[("1", 1, 1), ("1", 6, 6), ("1", 12, 6), ("1", 11, 6), ("1", 16, 8), ("1", 17, 6)],
        *[("2", 6, 2), ("2", 5, 2), ("4", 6, 3), ("8", 8, 8), ("all", 16, 8), ("all", 1, 1), ("all", 9, 5)],
    ],
)
def test_members_share_the_fewest_devices_that_give_the_shortest_run(devices, members, count):
    assert member_devices(small_config(f"devices={devices}"), members) == jax.devices()[:count]


def test_on_accelerators_the_config_chooses_the_devices(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert member_devices(small_config(), 8) == jax.devices()[:1]
    assert member_devices(small_config("devices=all"), 8) == jax.devices()


@pytest.mark.parametrize(
    ("devices", "members", "message"),
    [
        ("9", 9, r"devices=9 cannot be used: this machine shows JAX 8 .* Choose a number up to 8, or all\."),
        (
            "4",
            3,
            r"devices=4 cannot be used: there are 3 member\(s\), .* Choose a number up to 3, all, or more members\.",
        ),
    ],
)
def test_devices_that_cannot_share_are_refused(devices, members, message):
    with pytest.raises(ConfigError, match=message):
        member_devices(small_config(f"devices={devices}"), members)


def one(own, common):
    """A function of one member; tracing must not take the axis of members for that of a batch."""
    assert not batch_axis._within()
    return {"row": own["row"] * common, "sum": own["row"].sum()}, common + 1


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_dividing_members_changes_nothing(count, rng):
    own = {"row": rng.normal(size=(6, 5)).astype(np.float32)}
    axis = MemberAxis(jax.devices()[:count])
    program = axis.compile(one, (True, False), (True, False))
    placed = axis.place(own)
    results, common = program(placed, axis.place(np.float32(3), members=False))
    assert len(results["row"].sharding.device_set) == len(common.sharding.device_set) == count
    np.testing.assert_array_equal(results["row"], own["row"] * np.float32(3))
    np.testing.assert_allclose(results["sum"], own["row"].sum(-1), rtol=1e-5)
    assert common == 4
    assert on_first(common).device == jax.devices()[0]
    assert on_first(results)["row"].shape == (6 // count, 5)
    for index in range(6):
        mine = member_of(placed, index)["row"]
        assert mine.device == jax.devices()[0]
        np.testing.assert_array_equal(mine, own["row"][index])
    assert same_tree(jax.device_get(placed), own)


@pytest.mark.parametrize(("count", "padded"), [(1, "abcde"), (2, "abcdee"), (4, "abcdeeee"), (5, "abcde")])
def test_devices_are_filled_up_with_the_last_member(count, padded):
    assert "".join(MemberAxis(jax.devices()[:count]).pad("abcde")) == padded


def test_placing_arrays_copies_them(rng):
    values = rng.normal(size=(4, 3)).astype(np.float32)
    for count in (1, 2):
        axis = MemberAxis(jax.devices()[:count])
        placed = axis.place(values)
        axis.compile(lambda x: (jnp.zeros_like(x),), (True,), (True,), donate_argnums=0)(placed)
        assert np.abs(values).min() > 0, count


def test_a_member_that_is_not_there_is_an_error():
    placed = MemberAxis(jax.devices()[:2]).place(np.zeros((4, 3), np.float32))
    with pytest.raises(IndexError, match=r"no member 4 in an array of shape \[4, 3\]"):
        member_of(placed, 4)


def test_devices_that_jax_has_created_stay_as_they_are():
    assert len(jax.devices()) == 8
    show_cores(6)
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    ("cores", "members", "flags", "shown"), [(6, 8, "", 4), (2, 8, "", 2), (2, 3, "", 2), (6, 1, "", 1), (6, 8, "3", 3)]
)
def test_a_cpu_shows_as_many_cores_as_its_members_can_use(cores, members, flags, shown):
    code = f"""
import os
os.sched_getaffinity = lambda pid: set(range({cores}))
import jax
from dreamer.devices.member_axis import show_cores
show_cores({members})
print(len(jax.devices()))
"""
    chosen = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={flags}" if flags else ""}
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, **chosen}, capture_output=True, text=True)
    assert run.stdout.strip() == str(shown), run.stderr
