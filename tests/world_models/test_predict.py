"""Open-loop prediction in a world that counts: what is seen, what is dreamt, and their errors, by hand."""

import jax
import numpy as np
import pytest

from dreamer.world_models import predict
from tests import counter_world as world

DRIFT = 0.25
CONTEXT = 3


@pytest.fixture(scope="module")
def found():
    """Two sequences of six steps, the first three of which are seen; the second has a reset in step 4."""
    model = world.networks(world.Faults(drift=DRIFT, label=0.3)).world_model
    batch = world.episodes([6, 6], [False, False]).batch
    batch.is_first[1, 4] = True
    # What comes after the reset must not count, and this would.
    batch.obs["vector"][1, 4:] = 1e6
    batch.obs["image"][1, 4:] = 255
    predictions, metrics = predict(model, world.OBS_SPACES, batch, jax.random.key(0), CONTEXT)
    return jax.device_get(predictions), {name: float(value) for name, value in metrics.items()}


T = np.arange(6)
EXPECTED = T + DRIFT * (T + 1)
"""What the model makes of the count, which it moves by too much at every step."""


def test_predictions_go_on_from_the_last_step_seen(found):
    predictions, _ = found
    assert predictions["image"].shape == (2, 6, 4, 6, 1)
    np.testing.assert_allclose(predictions["vector"][0, :, 0], EXPECTED, rtol=1e-6)
    # The dream of the second sequence is not told of the reset.
    np.testing.assert_allclose(predictions["vector"][1, :, 0], EXPECTED, rtol=1e-6)


def test_errors_count_dreamt_steps_up_to_a_reset(found):
    _, metrics = found
    errors = np.square(EXPECTED - T)
    assert metrics["report/open_loop/vector"] == pytest.approx((errors[3:].sum() + errors[3]) / 4, rel=1e-4)
    # Images are 51 and 52 in turn, 24 pixels of them, and the model sees grey.
    image = 24 * np.square(0.5 - np.where(T % 2, 52, 51) / 255)
    assert metrics["report/open_loop/image"] == pytest.approx((image[3:].sum() + image[3]) / 4, rel=1e-4)
    # From 2 on, the class is 0, which has a probability of 0.7.
    assert metrics["report/open_loop/label"] == pytest.approx(-np.log(0.7), rel=1e-4)


def test_the_baseline_repeats_the_last_step_seen(found):
    _, metrics = found
    errors = np.square(EXPECTED[CONTEXT - 1] - T)
    assert metrics["report/repeat_last/vector"] == pytest.approx((errors[3:].sum() + errors[3]) / 4, rel=1e-4)
