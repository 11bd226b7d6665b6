"""Operations of a compiled program belong to the phases that the source names, forward and backward."""

import jax
import jax.numpy as jnp
import pytest

from dreamer.devices.phases import UNNAMED, phase, phase_of, phases_of

PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %sine = f32[4]{0} sine(%p), metadata={op_name="jit(f)/jvp(phase:filtering)/sin"}
  ROOT %times = f32[4]{0} multiply(%sine, %p), metadata={op_name="jit(f)/jvp(phase:heads)/mul"}
}

%fused.1 (p.1: f32[4]) -> f32[4] {
  %p.1 = f32[4]{0} parameter(0)
  %cosine = f32[4]{0} cosine(%p.1), metadata={op_name="jit(f)/transpose(jvp(phase:filtering))/cos"}
  %minus = f32[4]{0} negate(%cosine), metadata={op_name="jit(f)/transpose(jvp(phase:filtering))/neg"}
  %plus = f32[4]{0} add(%minus, %p.1), metadata={op_name="jit(f)/phase:optimizer/add"}
  ROOT %copied = f32[4]{0} copy(%plus)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %value = f32[4]{0} get-tuple-element(%state), index=1
  %root_of_its_fusion = f32[4]{0} fusion(%value), kind=kLoop, calls=%fused, metadata={op_name="jvp(phase:heads)/mul"}
  %most_of_its_fusion = f32[4]{0} fusion(%value), kind=kLoop, calls=%fused.1
  %other = f32[4]{0} exponential(%value), metadata={op_name="jit(f)/jvp(phase:heads)/exp"}
  %unnamed_in_loop = f32[4]{0} copy(%value)
  ROOT %next = (s32[], f32[4]{0}) tuple(%state)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %loop = (s32[], f32[4]{0}) while(%x), condition=%cond, body=%body, metadata={op_name="jit(f)/jvp(phase:heads)/while"}
  ROOT %unnamed = f32[4]{0} copy(%x), metadata={op_name="jit(f)/transpose"}
}
"""


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(f)/jvp(phase:filtering)/while/body/closed_call/dot_general", "filtering, forward"),
        ("jit(f)/transpose(jvp(phase:filtering))/while/body/dot_general", "filtering, backward"),
        ("jit(f)/transpose(jvp(phase:heads))/checkpoint/rematted_computation/mul", "heads, backward"),
        ("jit(f)/jvp(phase:reconstruction)/phase:convolutions/conv", "reconstruction, convolutions, forward"),
        ("jit(f)/jvp(phase:imagination)/phase:imagination/add", "imagination, forward"),
        ("jit(f)/phase:optimizer/add", "optimizer"),
        ("jit(f)/jvp()/transpose", ""),
    ],
)
def test_names_of_operations_have_phases(op_name, expected):
    assert phase_of(op_name) == expected


def test_operations_of_a_program_have_phases():
    phases = phases_of(PROGRAM)
    assert phases["root_of_its_fusion"] == "heads, forward"
    assert phases["most_of_its_fusion"] == "filtering, backward"
    assert phases["unnamed_in_loop"] == "heads, forward"
    assert phases["unnamed"] == UNNAMED
    assert "loop" not in phases


def test_what_jax_compiles_keeps_its_phases():
    @jax.jit
    def update(w, x):
        @phase("filtering")
        def filter_(w):
            return jax.lax.scan(lambda state, now: (jnp.tanh(w @ state + now),) * 2, x[0], x)[1]

        def loss(w):
            states = filter_(w)
            with phase("heads"):
                return jnp.sin(states).sum()

        gradient = jax.grad(loss)(w)
        with phase("optimizer"):
            return w - gradient

    program = update.lower(jnp.ones((8, 8)), jnp.ones((5, 8))).compile().as_text() or ""
    assert set(phases_of(program).values()) >= {"filtering, forward", "filtering, backward", "optimizer"}
