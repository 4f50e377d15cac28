"""The stream of an engine through the real cuda-bindings, on a driver library made for the test."""

from __future__ import annotations

from pathlib import Path

import fake_libcuda
import pytest

pytestmark = fake_libcuda.NEEDED
COPIES = """
int cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t size, uint64_t stream) {
  return put((Op){.kind = 0, .to = to, .from = (uint64_t)from, .size = size}, stream);
}
int cuMemcpyDtoHAsync(void *to, uint64_t from, size_t size, uint64_t stream) {
  return put((Op){.kind = 0, .to = (uint64_t)to, .from = from, .size = size}, stream);
}
"""
"""What the stream asks of a driver beyond tests/cuda/fake_driver.c."""


def test_host_memory_up_and_down(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    ran = fake_libcuda.run(tmp_path, Path(__file__).parent / "stream_on_fake_driver.py", rest=COPIES)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "as it should be\n", "")
