"""Whether JAX sees the accelerator that is there, and how fast it multiplies."""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping

from dreamer.devices import cores as own_cores
from dreamer.doctor.findings import Finding, ask, ask_python

_MEASURE = """
import json, time
import jax, jax.numpy as jnp

device = jax.devices()[0]
on_cpu = device.platform == "cpu"
size = 2048 if on_cpu else 8192
# Zeros and ones take less power, and the clock of a GPU rises with that. Products stay of the same size.
draw = lambda key: jax.random.normal(jax.random.key(key), (size, size), jnp.float32 if on_cpu else jnp.bfloat16)
a, x = draw(0) / size**0.5, draw(1)
product = jax.jit(lambda x: x @ a)
product(x).block_until_ready()
rates = []
for _ in range(3):
    count, begin = 0, time.perf_counter()
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
"""Published GFLOP/s in bfloat16 (V100, T4: float16), dense, by what the name of a device contains; the first counts.

From the makers' data sheets: NVIDIA's for each GPU, Google's "TPU versions" for v4 to v6e.
"""

SLOW_SHARE = 0.2
"""Of what is published; a large product reaches half of it and more."""

TYPICAL_CORE = (20, 150)
"""GFLOP/s in float32 of one core of a CPU with AVX2 or AVX-512."""

SLOW_CORE = 5.0

_NEW_DRIVER = 580
"""CUDA 13 needs this NVIDIA driver or a newer one."""


def accelerator(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """What JAX computes on, how fast, and whether something better lies idle."""
    gpus, tpus = nvidia(), sorted(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"))
    answer = ask_python(_MEASURE, environ)
    try:
        found = json.loads(answer.out.splitlines()[-1]) if answer.status == 0 else None
    except (ValueError, IndexError):
        found = None
    if found is None:
        mend = "If an accelerator is the cause, JAX_PLATFORMS=cpu goes without it; else install jax anew."
        yield Finding("problem", "accelerator", f"JAX does not work here ({answer.error}). {mend}")
        return
    kinds, platform, rate = found["kinds"], found["platform"], found["gflops"]
    counted = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    if platform == "cpu":
        yield from _cpu(rate, found)
        yield from _idle(gpus, tpus, environ)
        return
    peak = next((peak for name, peak in PEAKS.items() if name.lower() in kinds[0].lower()), None)
    known = f", of {peak * 1e-3:,.0f} published" if peak else ""
    yield Finding(
        "ok", "accelerator", f"JAX computes on {counted}: {rate * 1e-3:,.1f} TFLOP/s in bfloat16{known}.", found
    )
    if peak and rate < SLOW_SHARE * peak:
        text = f"{kinds[0]} reaches {rate / peak:.0%} of what is published, where half and more is usual: look with "
        yield Finding("problem", "accelerator", f"{text}nvidia-smi for other programs, a power limit or heat.")


def nvidia() -> list[tuple[str, str]]:
    """Name and driver version of every GPU that the driver shows; none without one."""
    answer = ask(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], seconds=30)
    rows = [line.rpartition(",") for line in answer.out.splitlines()] if answer.status == 0 else []
    return [(name.strip(), driver.strip()) for name, _, driver in rows if name]


def _cpu(rate: float, found: Mapping[str, object]) -> Iterator[Finding]:
    cores = own_cores.count()
    low, high = TYPICAL_CORE
    each = f"{rate / cores:,.0f} for each of {cores} core(s)"
    text = f"JAX computes on the CPU: {rate:,.0f} GFLOP/s in float32, {each}; {low} to {high} are typical."
    yield Finding("ok", "accelerator", text, {**found, "cores": cores})
    if rate / cores < SLOW_CORE:
        text = f"The CPU is slow, with {rate / cores:.1f} GFLOP/s a core: see with top whether other programs run, and "
        yield Finding("problem", "accelerator", f"{text}whether a container was given less than the cores it shows.")


def _idle(gpus: list[tuple[str, str]], tpus: list[str], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Accelerators that JAX does not use."""
    if not gpus and not tpus:
        return
    there = gpus[0][0] if gpus else "a TPU"
    told = environ.get("JAX_PLATFORMS", "")
    if told and told.partition(",")[0] == "cpu":
        mend = f"because JAX_PLATFORMS={told}: unset it"
    elif gpus and environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        mend = f"because CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']!r} hides it: unset it"
    elif gpus:
        digits = re.match(r"\d+", gpus[0][1])
        old = digits is not None and int(digits[0]) < _NEW_DRIVER
        # The extra brings CUDA 13, which an older driver cannot run.
        mend = f"pip install 'jax[cuda12]' (the driver is {gpus[0][1]})" if old else "pip install -e '.[cuda]'"
    else:
        mend = "pip install -e '.[tpu]'"
    text = f"{there} is there, but JAX computes on the CPU: {mend}."
    yield Finding("problem", "accelerator", text, {"gpus": [name for name, _ in gpus], "tpus": tpus})


__all__ = ["accelerator", "nvidia"]
