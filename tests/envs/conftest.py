"""What the tests of environments share."""

import numpy as np
import pytest

from dreamer.envs.suites.dmc import choose_renderer


@pytest.fixture(scope="session")
def renderer() -> None:
    """Skips a test where MuJoCo cannot render; asks the library itself, so that our own errors are never skipped."""
    choose_renderer()
    from dm_control import mujoco

    try:
        image = mujoco.Physics.from_xml_string("<mujoco/>").render(8, 8)
    except Exception as error:
        pytest.skip(f"MuJoCo cannot render here ({error}): install Debian's libegl1")
    assert image.dtype == np.uint8
