"""`isnet_trt.kernels.attention` for Hopper with specialised warps, in Gluon.

One warp copies tiles of keys and values through tensor maps; two warpgroups take 64 queries each. They wait for tiles
and free them by barriers in shared memory alone, so that one can multiply while the other computes its softmax. Tests
execute it in their emulator. No bundle has it, since no GPU has run it (`KernelTarget.trial_tiles`).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma

from isnet_trt.cuda.kernel_specs import LOG2_E

_LOG2_E = gl.constexpr(LOG2_E)
_HALF = gl.constexpr(64)
"""Queries of a warpgroup."""


@gluon.jit
def _keys_of_block(keys: gl.tensor, splits: gl.tensor, BLOCK_K: gl.constexpr) -> tuple[gl.tensor, gl.tensor]:
    """The first key of this block's part, and the key after its last."""
    share = gl.cdiv(gl.cdiv(keys, BLOCK_K), splits) * BLOCK_K
    begin = gl.program_id(2) * share
    return begin, gl.minimum(begin + share, keys)


@gluon.jit
def _produce(
    q: gl.tensor, k: gl.tensor, v: gl.tensor, tiles: gl.tensor, barriers: gl.tensor, keys: gl.tensor, splits: gl.tensor,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
) -> None:  # fmt: skip
    """Copy the queries of the block and all its keys and values, the latter into a ring of ``STAGES`` tiles."""
    query, key, value = tiles
    query_full, key_full, key_free, value_full, value_free = barriers
    image = gl.program_id(1)
    mbarrier.expect(query_full, q.block_type.nbytes)
    tma.async_copy_global_to_shared(q, [image, gl.program_id(0) * BLOCK_Q, 0], query_full, query)
    begin, end = _keys_of_block(keys, splits, BLOCK_K)
    for start in range(begin, end, BLOCK_K):
        step = (start - begin) // BLOCK_K
        stage = step % STAGES
        # In the first round the tiles are free: the phase before the first counts as over.
        free = ((step // STAGES) & 1) ^ 1
        mbarrier.wait(key_free.index(stage), free)
        mbarrier.expect(key_full.index(stage), k.block_type.nbytes)
        tma.async_copy_global_to_shared(k, [image, start, 0], key_full.index(stage), key.index(stage))
        mbarrier.wait(value_free.index(stage), free)
        mbarrier.expect(value_full.index(stage), v.block_type.nbytes)
        tma.async_copy_global_to_shared(v, [image, start, 0], value_full.index(stage), value.index(stage))


@gluon.jit
def _consume(
    HALF: gl.constexpr, tiles: gl.tensor, barriers: gl.tensor, bias: gl.tensor, out: gl.tensor, norms: gl.tensor,
    scale: gl.tensor, batch: gl.tensor, queries: gl.tensor, keys: gl.tensor, splits: gl.tensor,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, WIDTH: gl.constexpr, PARTIAL: gl.constexpr, STAGES: gl.constexpr,
) -> None:  # fmt: skip
    """The first (``HALF`` 0) or the second 64 queries of the block; see `isnet_trt.kernels.attention.attention`."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 16])
    TOTAL: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    query, key, value = tiles
    query_full, key_full, key_free, value_full, value_free = barriers
    image = gl.program_id(1)
    bias_base = bias + image.to(gl.int64) * keys
    top = gl.full([_HALF], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    mass = gl.zeros([_HALF], gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([_HALF, WIDTH], gl.float32, TOTAL)
    mbarrier.wait(query_full, 0)
    own = query.reshape([BLOCK_Q, WIDTH]).slice(HALF * _HALF, _HALF)
    begin, end = _keys_of_block(keys, splits, BLOCK_K)
    for start in range(begin, end, BLOCK_K):
        step = (start - begin) // BLOCK_K
        stage = step % STAGES
        full = (step // STAGES) & 1
        column = start + gl.arange(0, BLOCK_K, gl.SliceLayout(0, SCORES))
        shift = gl.load(bias_base + column, column < keys, float("-inf")) * _LOG2_E
        mbarrier.wait(key_full.index(stage), full)
        turned = key.index(stage).reshape([BLOCK_K, WIDTH]).permute((1, 0))
        score = warpgroup_mma(own, turned, gl.zeros([_HALF, BLOCK_K], gl.float32, SCORES), use_acc=False)
        mbarrier.arrive(key_free.index(stage), count=1)
        score = score * scale + shift[None, :]
        higher = gl.maximum(top, gl.max(score, 1))
        level = gl.where(higher == float("-inf"), 0.0, higher)
        weight = gl.exp2(score - level[:, None])
        decay = gl.exp2(top - level)
        mass = mass * decay + gl.sum(weight, 1)
        total = total * gl.convert_layout(decay, gl.SliceLayout(1, TOTAL))[:, None]
        factor = gl.convert_layout(weight.to(value.dtype), gl.DotOperandLayout(0, TOTAL, 2))
        mbarrier.wait(value_full.index(stage), full)
        total = warpgroup_mma(factor, value.index(stage).reshape([BLOCK_K, WIDTH]), total)
        mbarrier.arrive(value_free.index(stage), count=1)
        top = higher
    at = image.to(gl.int64) * queries
    safe = gl.where(mass > 0, mass, 1.0)
    first = gl.program_id(0) * BLOCK_Q + HALF * _HALF
    if PARTIAL:
        at += gl.program_id(2).to(gl.int64) * batch * queries
        line = first + gl.arange(0, _HALF, gl.SliceLayout(1, SCORES))
        gl.store(norms + at + line, gl.where(mass > 0, top + gl.log2(safe), float("-inf")), line < queries)
    total = total / gl.convert_layout(safe, gl.SliceLayout(1, TOTAL))[:, None]
    row = first + gl.arange(0, _HALF, gl.SliceLayout(1, TOTAL))[:, None]
    d = gl.arange(0, WIDTH, gl.SliceLayout(0, TOTAL))[None, :]
    gl.store(out + at * WIDTH + (row * WIDTH + d), total.to(out.dtype.element_ty), row < queries)


@gluon.jit
def _barriers(STAGES: gl.constexpr, ARRIVALS: gl.constexpr) -> gl.tensor:
    """One for each stage; a phase ends after ``ARRIVALS``."""
    barriers = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(barriers.index(stage), count=ARRIVALS)
    return barriers


@gluon.jit
def attention(
    q: gl.tensor, k: gl.tensor, v: gl.tensor, bias: gl.tensor, out: gl.tensor, norms: gl.tensor, scale: gl.tensor,
    batch: gl.tensor, queries: gl.tensor, keys: gl.tensor, splits: gl.tensor,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, WIDTH: gl.constexpr, PARTIAL: gl.constexpr, STAGES: gl.constexpr,
) -> None:  # fmt: skip
    """`isnet_trt.kernels.attention.attention` with MAPS, for blocks of 128 queries."""
    query = gl.allocate_shared_memory(q.dtype, q.block_type.shape, q.layout)
    key = gl.allocate_shared_memory(k.dtype, [STAGES] + k.block_type.shape, k.layout)  # noqa: RUF005
    value = gl.allocate_shared_memory(v.dtype, [STAGES] + v.block_type.shape, v.layout)  # noqa: RUF005
    tiles = (query, key, value)
    query_full = _barriers(1, 1).index(0)
    barriers = (query_full, _barriers(STAGES, 1), _barriers(STAGES, 2), _barriers(STAGES, 1), _barriers(STAGES, 2))
    gl.warp_specialize(
        [
            (_consume, (0, tiles, barriers, bias, out, norms, scale, batch, queries, keys, splits, BLOCK_Q, BLOCK_K,
                        WIDTH, PARTIAL, STAGES)),
            (_consume, (1, tiles, barriers, bias, out, norms, scale, batch, queries, keys, splits, BLOCK_Q, BLOCK_K,
                        WIDTH, PARTIAL, STAGES)),
            (_produce, (q, k, v, tiles, barriers, keys, splits, BLOCK_Q, BLOCK_K, STAGES)),
        ],
        [4, 1],  # warps, and registers of a thread, of the second and the third; the first has what is left
        [240, 24],
    )  # fmt: skip
