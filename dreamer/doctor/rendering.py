"""Which of MuJoCo's renderers work here, each tried in its own process: a broken driver may abort it."""

import os
from collections.abc import Iterator, Mapping

from dreamer.doctor.findings import MachineFinding, ask_python

RENDERERS = {
    "egl": "apt-get install libegl1, and on a GPU its driver's EGL library",
    "osmesa": "apt-get install libosmesa6",
    "glfw": "needs a screen",
}
"""How to get each of them."""

_TRY = """
import mujoco

model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 2'/><geom size='.3'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 48, 64) as renderer:
    renderer.update_scene(data)
    image = renderer.render()
if image.std() < 1:
    raise SystemExit("its image is empty")
print("works", flush=True)
import os
os._exit(0)  # Errors while a renderer closes do not matter.
"""


def rendering(environ: Mapping[str, str] = os.environ) -> Iterator[MachineFinding]:
    """Which renderers can draw images and videos of DeepMind Control and Memory Maze."""
    errors = {}
    for name in RENDERERS:
        answer = ask_python(_TRY, {**environ, "MUJOCO_GL": name}, 60.0)
        errors[name] = "" if "works" in answer.out else answer.error
    working = [name for name, error in errors.items() if not error]
    failed = "; ".join(f"{name}: {error}" for name, error in errors.items() if error)
    chosen = environ.get("MUJOCO_GL", "")
    data = {"working": working, "errors": errors, "chosen": chosen}
    if working:
        text = f"Works: {', '.join(working)}." + (f" Does not: {failed}." if failed else "")
        yield MachineFinding("ok", "rendering", text, data)
    else:
        fixes = "; ".join(f"{name}: {fix}" for name, fix in RENDERERS.items())
        text = f"No renderer works, so MuJoCo draws no images ({failed}). If you need them, {fixes}."
        yield MachineFinding("note", "rendering", text, data)
    if chosen and chosen in errors and errors[chosen]:
        fix = f"set MUJOCO_GL={working[0]}, or unset it" if working else "unset it, and train without images"
        yield MachineFinding("problem", "rendering", f"MUJOCO_GL={chosen} is set and does not work: {fix}.")


__all__ = ["rendering"]
