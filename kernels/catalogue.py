"""Every launch that a bundle may need."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from isnet_trt.cuda.context_ops import TYPES, WIDTH
from isnet_trt.cuda.work import label_code
from isnet_trt.kernels import accumulate, attention, finish, finite, gather_windows, region_pool
from isnet_trt.kernels.launch import Launch


def launches(
    arch: int, dtypes: Iterable[str], classes: int, width: int = WIDTH, context: Collection[str] | None = None
) -> Iterator[Launch]:
    """The launches for sm_``arch``, engines of ``dtypes`` (of `launch.TYPES`), ``classes`` classes and an attention of
    ``width`` channels.

    ``context`` names the kernels of the context operations that are wanted, of whatever type; None are all those of
    ``dtypes``. The volumes of `finish` are float32 where `accumulate` made them, whatever the engine's type, so that
    float32 is always among its launches.
    """
    dtypes = tuple(dict.fromkeys(dtypes))
    labels = label_code(classes)
    yield gather_windows.launch_resize()
    for dtype in dtypes:
        yield gather_windows.launch_gather(dtype)
        yield accumulate.launch_accumulate(dtype, classes)
        yield finish.launch_upsample_argmax(dtype, labels)
        yield finite.launch_finite(dtype)
    for dtype in dict.fromkeys(("fp32", *dtypes)):
        yield finish.launch_finish(dtype, labels)
    for dtype in dtypes if context is None else TYPES:
        for launch in _context(arch, dtype, width):
            if context is None or launch.name in context:
                yield launch


def _context(arch: int, dtype: str, width: int) -> Iterator[Launch]:
    """Those of the context operations, for inputs of one type."""
    yield region_pool.launch_assign(dtype)
    yield region_pool.launch_pool(dtype)
    yield region_pool.launch_combine(dtype)
    yield attention.launch_attention(dtype, arch, partial=False, width=width)
    yield attention.launch_attention(dtype, arch, partial=True, width=width)
    yield attention.launch_combine(dtype, width)
