"""What would a GPU have to launch for an update? ``python scripts/kernels.py [--size 1m] [--case vector] [key=value]``.

Compiles the update for an H100, which need not be present, and counts the kernels of the compiled program, those in
loops as often as they run. Small models wait for kernel launches: the count shows what is worth fusing, without a GPU.
It is not a time. Needs the extra ``cuda``, for its compiler.
"""

import argparse
import collections
import os
import pathlib
import re
import sys

# Read when JAX is first used. Without a GPU there is nothing to tune for, and no driver to check.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"

import jax
import scaling
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from dreamer import config as configs
from dreamer.agent.runtime import Agent

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 device_memory_size: 84929347584 memory_bandwidth: 3352320000000
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What the compiler knows about an H100 SXM5."""

NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
"""Operations for which nothing is launched."""

_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(")


def compile_update(size: str, case: str, overrides: list[str]) -> jax.stages.Compiled:
    """The update of a size and case of `scaling.CASES`, compiled for one H100."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    except NotImplementedError as error:
        sys.exit(f"JAX cannot compile for CUDA here ({error}). Install its compiler: pip install -e '.[cuda]'")
    config = configs.load([f"size/{size}"], overrides)
    spaces = scaling.CASES[case]
    agent = Agent(config, *spaces)
    arguments = (*agent._split(agent._leaves), scaling.random_batch(config, *spaces), agent._update_key)
    there = NamedSharding(topologies.make_mesh(topology, (1,), ("device",)), PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments)
    jax.default_backend = lambda: "gpu"  # The code chooses by it how some things are computed.
    return jax.jit(agent._flat_update, donate_argnums=1).lower(*shapes).compile()


def count(program: str) -> dict[str, tuple[int, int]]:
    """For the entry of a compiled program and each of its loops: how often it runs, and kernels each time."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)
    kernels: dict[str, tuple[int, int]] = {}

    def visit(name: str, label: str, times: int) -> None:
        kinds: collections.Counter[str] = collections.Counter()
        for line in bodies[name]:
            operation = _OPERATION.match(line)
            if operation is None or operation[1] in NO_KERNEL:
                continue
            called = re.search(r"(?:body|to_apply)=%([\w.\-]+)", line)
            if operation[1] == "while" and called is not None:
                rounds = re.search(r'known_trip_count\D*"n":"(\d+)"', line)
                if rounds is None:
                    raise ValueError(f"The compiler does not know how often a loop runs: {line[:200]}")
                visit(called[1], f"{label}loop of {rounds[1]}, {called[1]}", times * int(rounds[1]))
            elif operation[1] == "call" and called is not None:
                visit(called[1], f"{label}{called[1]}", times)
            else:
                kinds[operation[1]] += 1
        kernels[label or "outside of loops"] = times, kinds.total()

    visit(entry, "", 1)
    return kernels


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1m", help="a preset of configs/size")
    parser.add_argument("--case", default="vector", choices=scaling.CASES)
    parser.add_argument("--write", type=pathlib.Path, help="also write the compiled program to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config, for example nets.units=256")
    args = parser.parse_args()
    compiled = compile_update(args.size, args.case, args.overrides)
    program = compiled.as_text() or ""
    if args.write:
        args.write.write_text(program)
    rows = [(times * kernels, times, kernels, label) for label, (times, kernels) in count(program).items()]
    for product, times, kernels, label in sorted(rows, key=lambda row: -row[0]):
        print(f"{product:6,} = {times:3} x {kernels:4}  {label}")
    memory = compiled.memory_analysis()
    print(f"{sum(product for product, *_ in rows):6,} kernels in all")
    if memory is not None:
        print(f"{memory.temp_size_in_bytes / 1e6:,.0f} MB of temporary memory")


if __name__ == "__main__":
    main()
