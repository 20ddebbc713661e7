"""What is read off compiled programs: by hand, and against what was traced."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from peft_jax import sharding
from peft_jax.plan.flops import Work
from peft_jax.plan.program import Collective, Program

# As libtpu writes: trips in the condition, products as convolutions.
TPU = """\
HloModule jit_step, is_scheduled=true

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[]{:T(256)} parameter(0)
  %y = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%x, %y)
}

%fused (a: bf16[8,512,64], b: bf16[64,32,1]) -> bf16[8,512,32] {
  %a = bf16[8,512,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[64,32,1]{1,0,2} parameter(1)
  ROOT %conv = bf16[8,512,32]{2,1,0:T(8,128)(2,1)S(1)} convolution(%a, %b), \
window={size=1}, dim_labels=0bf_io0->0bf, metadata={op_name="dot(x)" id=3}
}

%scores (q: bf16[8,6,16,64], k: bf16[8,6,16,64]) -> f32[8,6,16,16] {
  %q = bf16[8,6,16,64]{3,2,1,0} parameter(0)
  %k = bf16[8,6,16,64]{3,2,1,0} parameter(1)
  ROOT %conv = f32[8,6,16,16]{3,2,1,0} convolution(%q, %k), window={size=8x6 \
stride=7x5 lhs_dilate=8x6}, dim_labels=01bf_01oi->01bf
}

%body (t: (s32[], bf16[8,512,64])) -> (s32[], bf16[8,512,64]) {
  %t = (s32[]{:T(128)}, bf16[8,512,64]{2,1,0}) parameter(0)
  %x = bf16[8,512,64]{2,1,0} get-tuple-element(%t), index=1
  %y = bf16[8,512,32]{2,1,0} fusion(%x, %x), kind=kOutput, calls=%fused
  %all-reduce.1 = (bf16[8,512,32]{2,1,0:T(8,128)(2,1)S(1)}, bf16[8,32]{1,0}) \
all-reduce(%y, %y), channel_id=1, replica_groups=[4,2]<=[8], \
use_global_device_ids=true, to_apply=%add
  ROOT %r = (s32[]{:T(128)}, bf16[8,512,64]{2,1,0}) tuple(%t, %x)
}

%cond (t: (s32[], bf16[8,512,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %t = (s32[]{:T(128)}, bf16[8,512,64]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%gather (g: f32[8,64,1]) -> f32[8,64,2] {
  %g = f32[8,64,1]{1,0,2} parameter(0)
  ROOT %all-gather.1 = f32[8,64,2]{1,0,2:T(8,128)S(1)} all-gather(%g), \
channel_id=35, replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], \
device_ids=([4,2]T(1,0)) {'axis_0','axis_1'}, dimensions={2}
}

ENTRY %main (p: bf16[8,512,64]) -> f32[8] {
  %p = bf16[8,512,64]{2,1,0} parameter(0)
  %init = (s32[]{:T(128)}, bf16[8,512,64]{2,1,0}) tuple(%p, %p)
  %loop = (s32[]{:T(128)}, /*index=1*/bf16[8,512,64]{2,1,0}) while(%init), \
condition=%cond, body=%body
  %s = f32[8,6,16,16]{3,2,1,0} fusion(%p, %p), kind=kOutput, calls=%scores
  %start = ((f32[8,64,1]{1,0,2}), f32[8,64,2]{1,0,2}, u32[]) async-start(%s), \
calls=%gather
  %done = f32[8,64,2]{1,0,2} async-done(%start), calls=%gather
  %permute = (f32[4,4]{1,0}, f32[4,4]{1,0}, u32[], u32[]) \
collective-permute-start(%s), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %alone = f32[4]{0} all-reduce(%s), replica_groups={{0},{1}}, to_apply=%add
  ROOT %ar = f32[8]{0} reduce-scatter(%s), \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}
"""


def test_collectives_count_as_often_as_their_loop_turns():
  assert sorted(Program(TPU).collectives(), key=lambda one: one.kind) == [
    Collective(kind="all-gather", bytes=8 * 64 * 2 * 4, group=4, count=1),
    Collective(
      kind="all-reduce",
      bytes=2 * (8 * 512 * 32 + 8 * 32),
      group=2,
      count=12,
    ),
    Collective(kind="collective-permute", bytes=64, group=1, count=1),
    Collective(kind="reduce-scatter", bytes=32, group=2, count=1),
  ]


def test_products_are_convolutions_on_a_tpu():
  projection = 8 * 512 * 32
  scores = 8 * 6 * 16 * 16
  moved = 2 * (8 * 512 * 64 + 64 * 32 + projection)
  moved_by_scores = 2 * 2 * 8 * 6 * 16 * 64 + 4 * scores
  assert Program(TPU).products() == Work(
    12 * 2 * projection * 64 + 2 * scores * 64, 12 * moved + moved_by_scores
  )


@pytest.mark.parametrize(
  ("kind", "sent"),
  [
    ("all-reduce", 2 * 3 / 4),
    ("all-gather", 3 / 4),
    ("reduce-scatter", 3),
    ("all-to-all", 3 / 4),
    ("collective-permute", 1),
  ],
)
def test_what_a_chip_sends_along_a_ring(kind, sent):
  one = Collective(kind=kind, bytes=100, group=4, count=5)
  assert one.sent_bytes == 500 * sent


def test_a_compiled_scan_over_a_mesh():
  """XLA's own text, for the processor: the contraction is split in two."""
  mesh = sharding.make_mesh(data=4, model=2)

  def place(*spec):
    return NamedSharding(mesh, PartitionSpec(*spec))

  def turn(x, kernels):
    up, down = kernels
    x = jax.lax.with_sharding_constraint(x @ up, place("data", "model"))
    return jax.lax.with_sharding_constraint(x @ down, place("data")), None

  def function(x, kernels):
    return jax.lax.scan(turn, x, kernels)[0]

  def shape(*sizes, spec):
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=place(*spec))

  kernels = (
    shape(5, 24, 16, spec=(None, None, "model")),
    shape(5, 16, 24, spec=(None, "model")),
  )
  lowered = jax.jit(function).lower(shape(8, 24, spec=("data",)), kernels)
  program = Program(lowered.compile().as_text())
  assert program.collectives() == [
    Collective(kind="all-reduce", bytes=4 * 2 * 24, group=2, count=5)
  ]
  assert program.products().flops == 5 * 2 * (2 * 2 * 24 * 8)


def test_another_text_is_refused():
  with pytest.raises(ValueError, match="text of a compiled program"):
    Program("module @jit_f {}")


def test_one_row_is_multiplied_and_added_up_on_a_tpu():
  text = """\
HloModule jit_predict

%fused (w: bf16[40,32], x: f32[40]) -> f32[32] {
  %x = f32[40]{0:T(1024)S(1)} parameter(1)
  %rows = f32[40,32]{1,0:T(8,128)} broadcast(%x), dimensions={0}
  %w = bf16[40,32]{1,0:T(8,128)(2,1)} parameter(0)
  %wide = f32[40,32]{1,0:T(8,128)} convert(%w)
  %factors = f32[40,32]{1,0:T(8,128)} multiply(%rows, %wide)
  %zero = f32[]{:T(128)} constant(0)
  ROOT %out = f32[32]{0} reduce(%factors, %zero), dimensions={0}, \
to_apply=%add, metadata={op_name="decoder/logits_dense/dot_general" id=1}
}

%norm (x: f32[40]) -> f32[] {
  %x = f32[40]{0:T(1024)S(1)} parameter(0)
  %square = f32[40]{0:T(1024)} multiply(%x, %x)
  %zero = f32[]{:T(128)} constant(0)
  ROOT %out = f32[]{:T(128)} reduce(%square, %zero), dimensions={0}, \
to_apply=%add, metadata={op_name="decoder/norm/reduce_sum" id=2}
}

ENTRY %main (w: bf16[40,32], x: f32[40]) -> f32[32] {
  %w = bf16[40,32]{1,0} parameter(0)
  %x = f32[40]{0} parameter(1)
  %n = f32[]{:T(128)} fusion(%x), kind=kLoop, calls=%norm
  ROOT %y = f32[32]{0} fusion(%w, %x), kind=kLoop, calls=%fused
}
"""
  expected = Work(2 * 40 * 32, 2 * 40 * 32 + 4 * 40 + 4 * 32)
  assert Program(text).products() == expected
