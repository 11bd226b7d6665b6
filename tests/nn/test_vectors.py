"""Observations and actions as one vector."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config import ConfigError
from dreamer.nn.vectors import flatten, refuse_images, unflatten, vector_size
from dreamer.types import Space

SPACES = {"cards": Space("discrete", (2,), 3), "joints": Space("vector", (2,))}


def test_classes_are_one_hot_and_numbers_as_they_are():
    vector = flatten({"joints": np.array([[100.0, -0.5]]), "cards": np.array([[2, 0]])}, SPACES)
    np.testing.assert_array_equal(vector, [[0, 0, 1, 1, 0, 0, 100.0, -0.5]])
    assert vector.shape[-1] == vector_size(SPACES)


def test_no_class_is_all_zeros():
    vector = flatten({"joints": np.zeros((1, 2)), "cards": np.array([[-1, 1]])}, SPACES)
    np.testing.assert_array_equal(vector[0, :6], [0, 0, 0, 0, 1, 0])


def test_classes_may_be_given_one_hot():
    cards = np.array([[[0, 0, 1], [0.5, 0.5, 0]]], np.float32)
    vector = flatten({"joints": np.zeros((1, 2)), "cards": cards}, SPACES)
    np.testing.assert_array_equal(vector[0, :6], [0, 0, 1, 0.5, 0.5, 0])


def test_numbers_come_back():
    spaces = {"arm": Space("continuous", (2, 2)), "leg": Space("continuous", ())}
    action = {"arm": jnp.arange(12.0).reshape(3, 2, 2), "leg": jnp.array([7.0, 8.0, 9.0])}
    found = unflatten(flatten(action, spaces), spaces)
    assert found.keys() == action.keys()
    for key, value in action.items():
        np.testing.assert_array_equal(found[key], value)


def test_an_image_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"algorithm=sac cannot be used: .* camera are images .* env\.ignore"):
        refuse_images({"camera": Space("image", (16, 16, 3)), **SPACES}, "algorithm=sac")
    refuse_images(SPACES, "algorithm=sac")
