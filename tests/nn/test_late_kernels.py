"""Scans whose kernels get their gradients after the loop, of CPUs and of accelerators, against the plain scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.nn import late_kernels, lean_scan
from dreamer.nn.layers import MLP, BlockLinear, Linear, RMSNorm

STEPS, ROWS, SIZE = 5, 3, 8

both_scans = pytest.mark.parametrize("scan", [late_kernels.scan, lean_scan.scan], ids=["late", "lean"])


class Cell(nnx.Module):
    """Every kind of layer, one that no step uses, and a scale that is not part of a linear layer."""

    def __init__(self, dtype="float32"):
        rngs = nnx.Rngs(params=0)
        self.mlp = MLP(2, 4, 1, dtype=dtype, rngs=rngs)
        self.mix = BlockLinear(SIZE, SIZE, 2, shared=4, dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(SIZE)
        self.out = Linear(SIZE, 2, dtype=dtype, rngs=rngs)
        self.unused = Linear(3, 3, dtype=dtype, rngs=rngs)


def step(cell, carry, inputs):
    x, keep = inputs
    carry = carry * keep[:, None]
    carry = jnp.tanh(cell.norm(cell.mix(carry, cell.mlp(x))) + carry)
    return carry, {"carry": carry, "out": cell.out(carry)}


def plain(cell, carry, inputs):
    return jax.lax.scan(functools.partial(step, cell), carry, inputs)[1]


def problem(rng, dtype="float32"):
    cell = Cell(dtype)
    noise = iter(jax.random.split(jax.random.key(3), 20))
    cell = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape, x.dtype), cell)
    carry = jnp.asarray(rng.normal(size=(ROWS, SIZE)), dtype)
    inputs = jnp.asarray(rng.normal(size=(STEPS, ROWS, 2)), dtype), jnp.asarray(rng.uniform(size=(STEPS, ROWS)) > 0.3)
    weights = {
        "carry": jnp.asarray(rng.normal(size=(STEPS, ROWS, SIZE)), dtype),
        "out": jnp.asarray(rng.normal(size=(STEPS, ROWS, 2)), dtype),
    }
    return cell, carry, inputs, weights


def gradients(scan, cell, carry, inputs, weights):
    def loss(cell, carry, x):
        outputs = scan(cell, carry, (x, inputs[1]))
        return sum((weights[key] * outputs[key]).sum() for key in weights)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(cell, carry, inputs[0])


@both_scans
def test_values_and_gradients_are_those_of_the_plain_scan(scan, rng):
    given = problem(rng)
    ours, our_gradient = gradients(functools.partial(scan, step), *given)
    value, gradient = gradients(plain, *given)
    np.testing.assert_allclose(ours, value, rtol=1e-6)
    assert str(jax.tree.structure(our_gradient)) == str(jax.tree.structure(gradient))
    for a, b in zip(jax.tree.leaves(our_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))
    zero = [np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(gradient)]
    assert sum(zero) == 2, "only the kernel and bias of the unused layer have no gradient"


@pytest.mark.slow
@both_scans
def test_in_double_precision_nothing_is_left_of_the_difference(scan, rng):
    with jax.enable_x64(True):
        cell, *given = problem(rng, "float64")
        # Parameters are float32 by nature; the computation decides the precision.
        cell = jax.tree.map(lambda x: x.astype(jnp.float64), cell)
        ours, expected = (gradients(way, cell, *given) for way in (functools.partial(scan, step), plain))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            # The norm computes in float32 in both.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(np.abs(b).max(), 1e-3))


@pytest.mark.slow
@both_scans
def test_members_of_a_population_get_their_own_gradients(scan, rng):
    cell, carry, inputs, weights = problem(rng)
    cells = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), cell)
    ours = functools.partial(scan, step)
    both = jax.vmap(lambda cell: gradients(ours, cell, carry, inputs, weights))(cells)
    for member in range(2):
        alone = gradients(plain, jax.tree.map(lambda x, i=member: x[i], cells), carry, inputs, weights)
        for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[member], b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))


@both_scans
def test_no_gradient_of_a_kernel_is_summed_in_the_loop(scan, rng):
    cell, carry, inputs, weights = problem(rng)
    size = cell.mix.kernel.shape

    def carried(way):
        jaxpr = jax.make_jaxpr(lambda cell: gradients(way, cell, carry, inputs, weights))(cell)
        found: list[tuple[int, ...]] = []

        def visit(jaxpr):
            for equation in jaxpr.eqns:
                if equation.primitive.name == "scan":
                    constants, count = equation.params["num_consts"], equation.params["num_carry"]
                    found.extend(x.aval.shape for x in equation.invars[constants : constants + count])
                for inner in jax.tree.leaves(
                    list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
                ):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        visit(inner)

        visit(jaxpr.jaxpr)
        return found

    assert size in carried(plain)
    ours = carried(functools.partial(scan, step))
    assert (ROWS, SIZE) in ours and size not in ours


@both_scans
def test_a_step_that_calls_a_layer_twice_is_refused(scan, rng):
    cell, carry, inputs, _ = problem(rng)

    def twice(cell, carry, inputs):
        return carry, cell.out(carry) + cell.out(2 * carry)

    with pytest.raises(ValueError, match="calls a Linear twice"):
        jax.grad(lambda cell: scan(twice, cell, carry, inputs).sum())(cell)


def test_a_lean_loop_writes_down_only_carry_and_outputs(rng):
    """Every intermediate result that is kept for the backward loop is one more operation in each step."""
    cell, carry, inputs, weights = problem(rng)

    def loops(way):
        jaxpr = jax.make_jaxpr(lambda cell: gradients(way, cell, carry, inputs, weights))(cell).jaxpr
        scans = [e for e in jaxpr.eqns[0].params["jaxpr"].eqns if e.primitive.name == "scan"]
        return [[x.aval.shape for x in scan.outvars[scan.params["num_carry"] :]] for scan in scans]

    forward, backward = loops(functools.partial(lean_scan.scan, step))
    assert forward == [(STEPS, ROWS, SIZE), (STEPS, ROWS, 2)] and backward == [(STEPS, ROWS, SIZE)]
    assert len(loops(plain)[0]) > 2
