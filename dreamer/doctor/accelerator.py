"""Whether JAX sees the machine's accelerator, and how fast it multiplies matrices."""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dreamer.devices import cores as own_cores
from dreamer.doctor.findings import MachineFinding, ask, ask_python

_MEASURE = """
import json, time
import jax, jax.numpy as jnp

device = jax.devices()[0]
on_cpu = device.platform == "cpu"
size = 2048 if on_cpu else 8192
# Random numbers, because zeros and ones take less power, which lets a GPU clock higher.
draw = lambda key: jax.random.normal(jax.random.key(key), (size, size), jnp.float32 if on_cpu else jnp.bfloat16)
# Scaled so that repeated products keep their size.
a = draw(0) / size**0.5
x = draw(1)
product = jax.jit(lambda x: x @ a)
product(x).block_until_ready()
rates = []
for _ in range(3):
    count = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.3:
        for _ in range(1 if on_cpu else 10):
            last = product(x)
        last.block_until_ready()
        count += 1 if on_cpu else 10
    rates.append(2 * size**3 * count / (time.perf_counter() - begin) * 1e-9)
kinds = [device.device_kind for device in jax.devices()]
print(json.dumps({"platform": device.platform, "kinds": kinds, "gflops": max(rates)}))
"""

PEAKS = {
    "B200": 2250e3,
    "H200": 989e3,
    "H100": 989e3,
    "A100": 312e3,
    "L40S": 362e3,
    "L40": 181e3,
    "L4": 121e3,
    "A10": 125e3,
    "V100": 125e3,
    "T4": 65e3,
    "4090": 165e3,
    "3090": 71e3,
    "v6": 918e3,
    "v5p": 459e3,
    "v5": 197e3,
    "v4": 275e3,
}
"""Published dense GFLOP/s in bfloat16 (V100, T4: float16), by a part of the device's name; the first match counts.

From the vendors' data sheets: NVIDIA's for each GPU, Google's "TPU versions" for v4 to v6e.
"""

SLOW_SHARE = 0.2
"""Share of the published rate below which a device is slow; a large product reaches half or more."""

TYPICAL_CORE = (20, 150)
"""GFLOP/s in float32 of one CPU core with AVX2 or AVX-512."""

SLOW_CORE = 5.0
"""GFLOP/s in float32 below which a CPU core is slow."""

_NEW_DRIVER = 580
"""CUDA 13 needs this NVIDIA driver or a newer one."""


class Gpu(NamedTuple):
    """An NVIDIA GPU, as its driver lists it."""

    name: str
    driver: str
    """Version of the driver."""


def accelerator(environ: Mapping[str, str] = os.environ) -> Iterator[MachineFinding]:
    """What JAX computes on, how fast, and whether something faster lies idle."""
    gpus = nvidia_gpus()
    tpus = sorted(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"))
    answer = ask_python(_MEASURE, environ)
    try:
        found = json.loads(answer.out.splitlines()[-1]) if answer.status == 0 else None
    except (ValueError, IndexError):
        found = None
    if found is None:
        fix = "If an accelerator is the cause, set JAX_PLATFORMS=cpu to do without it; otherwise reinstall jax."
        yield MachineFinding("problem", "accelerator", f"JAX does not work here ({answer.error}). {fix}")
        return
    kinds = found["kinds"]
    rate = found["gflops"]
    counted = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    if found["platform"] == "cpu":
        yield from _cpu(rate, found)
        yield from _idle(gpus, tpus, environ)
        return
    peak = next((peak for name, peak in PEAKS.items() if name.lower() in kinds[0].lower()), None)
    share = f", of {peak * 1e-3:,.0f} published" if peak else ""
    yield MachineFinding(
        "ok", "accelerator", f"JAX computes on {counted}: {rate * 1e-3:,.1f} TFLOP/s in bfloat16{share}.", found
    )
    if peak and rate < SLOW_SHARE * peak:
        text = f"{kinds[0]} reaches {rate / peak:.0%} of its published rate, where half or more is usual: look with "
        yield MachineFinding("problem", "accelerator", f"{text}nvidia-smi for other programs, a power limit or heat.")


def nvidia_gpus() -> list[Gpu]:
    """Every GPU that the NVIDIA driver lists; none without a driver."""
    answer = ask(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], seconds=30)
    rows = [line.rpartition(",") for line in answer.out.splitlines()] if answer.status == 0 else []
    return [Gpu(name.strip(), driver.strip()) for name, _, driver in rows if name]


def _cpu(rate: float, found: Mapping[str, object]) -> Iterator[MachineFinding]:
    cores = own_cores.count()
    low, high = TYPICAL_CORE
    each = f"{rate / cores:,.0f} for each of {cores} core(s)"
    text = f"JAX computes on the CPU: {rate:,.0f} GFLOP/s in float32, {each}; {low} to {high} are typical."
    yield MachineFinding("ok", "accelerator", text, {**found, "cores": cores})
    if rate / cores < SLOW_CORE:
        text = (
            f"The CPU is slow, with {rate / cores:.1f} GFLOP/s a core: check with top whether other programs run, and "
        )
        yield MachineFinding(
            "problem", "accelerator", f"{text}whether the container may use all the cores that it shows."
        )


def _idle(gpus: list[Gpu], tpus: list[str], environ: Mapping[str, str]) -> Iterator[MachineFinding]:
    """Accelerators that JAX does not use."""
    if not gpus and not tpus:
        return
    device = gpus[0].name if gpus else "a TPU"
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms.partition(",")[0] == "cpu":
        fix = f"because JAX_PLATFORMS={platforms}: unset it"
    elif gpus and environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        fix = f"because CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']!r} hides it: unset it"
    elif gpus:
        driver = gpus[0].driver
        major = re.match(r"\d+", driver)
        old = major is not None and int(major[0]) < _NEW_DRIVER
        # The extra brings CUDA 13, which an older driver cannot run.
        fix = f"pip install 'jax[cuda12]' (the driver is {driver})" if old else "pip install -e '.[cuda]'"
    else:
        fix = "pip install -e '.[tpu]'"
    text = f"{device} is there, but JAX computes on the CPU: {fix}."
    yield MachineFinding("problem", "accelerator", text, {"gpus": [gpu.name for gpu in gpus], "tpus": tpus})


__all__ = ["Gpu", "accelerator", "nvidia_gpus"]
