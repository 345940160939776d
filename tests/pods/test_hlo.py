"""XLA's text as instructions and how often each runs; and programs whose counts are known."""

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from mlm_jax.pods.costs import matmul_flops, memory_bytes
from mlm_jax.pods.hlo import array_shapes, parse

# As a TPU writes it: no trip count is noted, a collective is shown by each step of its chain, S(1) is the scratchpad.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

%condition (state.1: (s32[], bf16[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  %state.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %below = pred[]{:T(512)} compare(%counter, %limit), direction=LT, metadata={op_name="while/cond/lt"}
}

%chain (shard: bf16[2,4]) -> bf16[8,4] {
  %shard = bf16[2,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %gathered = bf16[8,4]{1,0} all-gather(%shard), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%chain.end (shard.2: bf16[2,4]) -> bf16[8,4] {
  %shard.2 = bf16[2,4]{1,0} parameter(0)
  ROOT %gathered.2 = bf16[8,4]{1,0} all-gather(%shard.2), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%scatter (whole: f32[8,4]) -> f32[2,4] {
  %whole = f32[8,4]{1,0} parameter(0)
  %sum = f32[8,4]{1,0} all-reduce(%whole), channel_id=9, replica_groups=[1,4]<=[4], to_apply=%add
  %zero.1 = u32[] constant(0)
  ROOT %part = f32[2,4]{1,0} dynamic-slice(%sum, %zero.1, %zero.1), dynamic_slice_sizes={2,4}
}

%body (state.2: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %state.2 = (s32[], bf16[8,4]) parameter(0)
  %counter.2 = s32[] get-tuple-element(%state.2), index=0
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%state.2), index=1
  %own = bf16[2,4]{1,0:T(8,128)(2,1)} slice(%x), slice={[0:2], [0:4]}
  %start = bf16[8,4]{1,0} fusion(%own), kind=kCustom, calls=%chain
  %end = bf16[8,4]{1,0} fusion(%own), kind=kCustom, calls=%chain.end
  %product = f32[8,8]{1,0} convolution(%end, %x), window={size=1}, dim_labels=0bf_0oi->0bf
  ROOT %next = (s32[], bf16[8,4]) tuple(%counter.2, %end)
}

ENTRY %main (a: bf16[8,4], b: f32[8,4]) -> f32[2,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[8,4]{1,0} parameter(1)
  %two = s32[] constant(2)
  %first = (s32[], bf16[8,4]) tuple(%two, %a)
  %loop = (s32[], bf16[8,4]{1,0}) while(%first), condition=%condition, body=%body, metadata={op_name="while"}
  ROOT %out = f32[2,4]{1,0} fusion(%b), kind=kCustom, calls=%scatter
}
"""


def test_a_loop_runs_from_its_start_to_the_constant_of_its_condition() -> None:
    module = parse(TEXT)
    assert module.entry == "main"
    assert module.num_partitions == 4
    assert module.runs == {"main": 1, "condition": 5, "body": 4, "chain": 4, "chain.end": 4, "scatter": 1}


def test_a_noted_trip_count_comes_first() -> None:
    noted = TEXT.replace('metadata={op_name="while"}', 'backend_config={"known_trip_count":{"n":"11"}}')
    assert parse(noted).runs["body"] == 11


def test_what_a_loop_of_unknown_length_multiplies_is_not_guessed() -> None:
    unknown = TEXT.replace("direction=LT", "direction=NE").replace(
        "%product = f32[8,8]{1,0} convolution(%end, %x), window={size=1}, dim_labels=0bf_0oi->0bf",
        "%product = f32[8,8]{1,0} dot(%end, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
    )
    with pytest.raises(ValueError, match="unknown length"):
        matmul_flops(parse(unknown))


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("bf16[16,512]{1,0:T(8,128)(2,1)S(1)}", 16 * 512 * 2),
        ("(f32[], /*index=1*/pred[3,5]{1,0}, token[])", 4 + 15),
        ("u4[3]", 2),
        ("f8e4m3fn[7]", 7),
        ("c64[2]", 16),
    ],
)
def test_bytes_of_a_type(text: str, bytes_: int) -> None:
    assert sum(shape.bytes for shape in array_shapes(text)) == bytes_


def test_the_scratchpad_is_not_memory() -> None:
    assert not array_shapes("bf16[16,512]{1,0:T(8,128)(2,1)S(1)}")[0].in_device_memory
    assert array_shapes("bf16[16,512]{1,0:T(8,128)(2,1)}")[0].in_device_memory


def _compiled(function: object, *shapes: tuple[int, ...]) -> jax.stages.Compiled:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


def test_flops_of_a_product_in_nested_loops() -> None:
    def inner(x: Array, _: None) -> tuple[Array, None]:
        return jnp.tanh(x @ x), None

    def outer(x: Array, _: None) -> tuple[Array, None]:
        return jax.lax.scan(inner, x, length=5)[0], None

    compiled = _compiled(lambda x: jax.lax.scan(outer, x, length=3)[0], (32, 32))
    assert matmul_flops(parse(compiled.as_text())) == 3 * 5 * 2 * 32**3


@pytest.mark.parametrize(
    ("image", "kernel", "options"),
    [
        ((2, 3, 9, 8), (4, 3, 3, 2), {"window_strides": (2, 1), "padding": ((1, 2), (0, 1))}),
        ((1, 2, 5, 5), (3, 2, 3, 3), {"window_strides": (1, 1), "padding": "SAME", "lhs_dilation": (2, 3)}),
        ((1, 2, 9, 9), (3, 2, 3, 2), {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 3)}),
    ],
)
def test_flops_of_a_convolution_are_those_that_xla_counts(
    image: tuple[int, ...], kernel: tuple[int, ...], options: dict
) -> None:
    if options["padding"] == "SAME":
        options = options | {"padding": ((1, 1), (1, 1))}
    compiled = _compiled(lambda x, w: jax.lax.conv_general_dilated(x, w, **options), image, kernel)
    assert matmul_flops(parse(compiled.as_text())) == compiled.cost_analysis()["flops"]


KERNELS = """HloModule jit_step

ENTRY %main (a: s8[1,1,1], q: bf16[2,3,512,64], k: bf16[2,3,256,64]) -> (bf16[2,3,512,64]) {
  %a = s8[1,1,1]{2,1,0} parameter(0)
  %q = bf16[2,3,512,64]{3,2,1,0} parameter(1)
  %k = bf16[2,3,256,64]{3,2,1,0} parameter(2)
  ROOT %KERNEL.3 = (bf16[2,3,512,64]{3,2,1,0}) custom-call(%a, %a, %q, %k, %k), custom_call_target="tpu_custom_call"
}
"""


@pytest.mark.parametrize(("kernel", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_flops_of_splash_attention(kernel: str, products: int) -> None:
    module = parse(KERNELS.replace("KERNEL", f"splash_mha_{kernel}_segmented_residuals"))
    assert matmul_flops(module) == products * 2 * (2 * 3 * 512 * 64) * 256


@pytest.mark.parametrize("visited", ["1,4,3", "1,3,4"])
def test_splash_of_a_local_layer_takes_the_tiles_it_visits(visited: str) -> None:
    """Three tiles of the four in each row of tiles, or in each column."""
    text = KERNELS.replace("KERNEL", "splash_mha_fwd_segmented_residuals").replace(
        "s8[1,1,1]", f"s8[{visited}]"
    )
    assert matmul_flops(parse(text)) == 2 * 2 * (2 * 3 * 512 * 64) * 256 * 3 / 4


def test_a_kernel_that_is_not_known_is_no_zero() -> None:
    with pytest.raises(ValueError, match=r"the kernel own_kernel.3 are not known"):
        matmul_flops(parse(KERNELS.replace("KERNEL", "own_kernel")))


def test_memory_traffic_is_that_of_the_slices_a_loop_reads() -> None:
    """Of a stack each iteration reads one part and writes one: the stack is read and written once in all."""
    steps, size = 50, 1000

    def body(total: Array, x: Array) -> tuple[Array, Array]:
        return total, jnp.tanh(x) + total

    compiled = _compiled(lambda xs: jax.lax.scan(body, jnp.float32(1), xs)[1], (steps, size))
    stack = steps * size * 4
    assert 2 * stack <= memory_bytes(parse(compiled.as_text())) <= 6 * stack


PREFETCHES = """HloModule jit_step

ENTRY %main (a: f32[8,100]) -> f32[8,100] {
  %a = f32[8,100]{1,0} parameter(0)
  %slice-start.1 = ((f32[8,100]{1,0}), f32[2,100]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:100]}
  %slice-done.1 = f32[2,100]{1,0:S(1)} slice-done(%slice-start.1)
  %buffer.1 = f32[8,100]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %room.1 = f32[8,100]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %copy-start.1 = (f32[8,100]{1,0}, f32[8,100]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%buffer.1)
  ROOT %copy-done.1 = f32[8,100]{1,0} copy-done(%copy-start.1)
}
"""


def test_a_copy_between_memory_and_scratchpad_moves_its_bytes_once() -> None:
    """The text of an asynchronous copy names its source and its destination at its start and again at its end."""
    slice_read, copy_written = 2 * 100 * 4, 8 * 100 * 4
    assert memory_bytes(parse(PREFETCHES)) == slice_read + copy_written
