"""The kernels' folder and their launches. launch.json is the real one of real compilations; the driver is a double."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensor_maps
from cuda_double import Driver, Gpu, open_device

from isnet_trt.cuda import driver
from isnet_trt.cuda.kernels import Kernel, Kernels, choose, read
from isnet_trt.cuda.tensor_maps import Encoder
from isnet_trt.errors import BundleError, EngineError, EngineUnavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")

MAPS = "attention_map64_fp16"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sm_80 with three kernels and sm_90 with four, made by the compiler."""
    out = tmp_path_factory.mktemp("kernels")
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", "--arch", "80", "90", "--dtype", "fp16"]
    command += ["--classes", "19", "--only", "resize", "gather", "attention_fp16", MAPS, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture
def folder(compiled: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(compiled, tmp_path / "kernels"))


def change(folder: Path, kernel: str | None = None, sm: str = "sm_80", **fields: object) -> None:
    """Set fields of a launch.json, or of one kernel in it; None removes them."""
    path = folder / sm / "launch.json"
    data = json.loads(path.read_text("utf-8"))
    target = data["kernels"][kernel] if kernel else data
    for key, value in fields.items():
        target[key] = value
        if value is None:
            del target[key]
    path.write_text(json.dumps(data), "utf-8")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("8.0", ("sm_80", "cubin")), ("9.0", ("sm_90", "cubin")), ("8.9", ("sm_80", "ptx")), ("12.0", ("sm_80", "ptx"))],
)
def test_the_architecture_that_fits(compiled, capability, expected):
    place, form = choose(compiled, capability)
    assert (place.name, form) == expected
    files = read(compiled, capability)
    assert set(files.kernels) == {"resize", "gather_fp16", "attention_fp16"} | (
        {MAPS} if capability == "9.0" else set()
    )
    assert files.classes == 19
    assert all(code[:4] == b"\x7fELF" if form == "cubin" else b".entry" in code for code in files.code.values())


def test_the_highest_portable_one_is_taken(tmp_path):
    for name in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "notes"):
        (tmp_path / name).mkdir()
    assert choose(tmp_path, "12.1") == (tmp_path / "sm_89", "ptx")
    assert choose(tmp_path, "8.7") == (tmp_path / "sm_86", "ptx")
    assert choose(tmp_path, "12.0") == (tmp_path / "sm_120", "cubin")
    with pytest.raises(EngineUnavailable, match=r"compute capability 7\.5 runs none of them; build the bundle again"):
        choose(tmp_path, "7.5")
    with pytest.raises(EngineUnavailable, match="holds kernels for nothing"):
        choose(tmp_path / "notes", "8.0")


DEFECTS = {
    "schema": ({"schema": 9}, "has schema 9; this isnet_trt reads 1"),
    "arch": ({"arch": "sm_86"}, "is for 'sm_86', not for sm_80"),
    "classes": ({"classes": "many"}, "classes is 'many'"),
    "no kernels": ({"kernels": []}, "lists no kernels"),
    "missing key": ({"kernel": "resize", "threads": None}, "resize has no valid threads"),
    "wrong type": ({"kernel": "resize", "grid": "x"}, "resize has no valid grid"),
    "odd grid": ({"kernel": "resize", "grid": [[["width"]], [], []]}, "arguments or grid of resize"),
    "grid of nothing": ({"kernel": "resize", "grid": [[["depth", 1]], [], []]}, "cannot be launched with depth"),
    "division by 0": ({"kernel": "resize", "grid": [[["width", 0]], [], []]}, "cannot be launched with width"),
    "unknown type": ({"kernel": "resize", "arguments": [["width", "fp8"]]}, "cannot be launched with fp8"),
    "threads": ({"kernel": "resize", "threads": 4096}, "cannot be launched with 4096 threads"),
    "pointers": (
        {"kernel": "resize", "trailing_null_pointers": 2**31},
        "cannot be launched with 2147483648 null pointers",
    ),
    "shared": ({"kernel": "resize", "shared_bytes": -1}, "cannot be launched with -1 bytes of shared memory"),
    "infinite": ({"kernel": "resize", "grid": [[["width", float("inf")]], [], []]}, "arguments or grid of resize"),
    "boolean": ({"kernel": "resize", "threads": True}, "resize has no valid threads"),
    "digest": ({"kernel": "gather_fp16", "cubin_sha256": "0" * 64}, r"gather_fp16\.cubin was changed"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_is_said_with_the_file(folder, name):
    fields, message = DEFECTS[name]
    change(folder, **fields)
    with pytest.raises(BundleError, match=message) as caught:
        read(folder, "8.0")
    assert "sm_80" in str(caught.value)
    assert "python -m isnet_trt.build" in str(caught.value)


def test_files_that_are_missing_or_damaged(folder):
    cubin = folder / "sm_80" / "resize.cubin"
    cubin.write_bytes(cubin.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"resize\.cubin was changed after it was compiled"):
        read(folder, "8.0")
    read(folder, "8.6")  # takes the PTX
    cubin.unlink()
    with pytest.raises(BundleError, match=r"resize\.cubin is missing"):
        read(folder, "8.0")
    (folder / "sm_80" / "launch.json").write_text("{", "utf-8")
    with pytest.raises(BundleError, match="it is no JSON"):
        read(folder, "8.0")
    (folder / "sm_80" / "launch.json").unlink()
    with pytest.raises(BundleError, match=r"launch\.json is missing"):
        read(folder, "8.0")


def test_names_do_not_lead_out_of_the_folder(folder):
    entry = json.loads((folder / "sm_80" / "launch.json").read_text("utf-8"))["kernels"]["resize"]
    change(folder, kernels={"../../secret": entry})
    with pytest.raises(BundleError, match="is no name of a kernel"):
        read(folder, "8.0")


RESIZE = {
    "source": 4097, "picture": 4096, "pitch": 1 << 40, "pixel": 3, "bgr": 1, "source_height": 7, "source_width": 9,
    "height": 300, "width": 129,
}  # fmt: skip


def parameters(kernel: Kernel, address: int) -> list[int | float]:
    """What the driver would read, by the arguments' types."""
    kinds = list(kernel.arguments.values()) + ["*"] * kernel.trailing
    pointers = (ctypes.c_void_p * len(kinds)).from_address(address)
    c = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
    return [c.get(kind, ctypes.c_uint64).from_address(at).value for kind, at in zip(kinds, pointers, strict=True)]


def test_arguments_are_packed_as_launch_json_says(compiled):
    kernel = read(compiled, "8.0").kernels["resize"]
    packed = kernel.pack(RESIZE)
    assert parameters(kernel, packed.address) == [*RESIZE.values(), 0, 0]
    assert kernel.blocks(RESIZE) == (2, 300, 1)


def test_the_order_of_keywords_does_not_matter(compiled):
    kernel = read(compiled, "8.0").kernels["attention_fp16"]
    values = {
        name: (256 * i if kind.startswith("*") else i) for i, (name, kind) in enumerate(kernel.arguments.items(), 1)
    }
    values["scale"] = 0.25
    packed = kernel.pack(dict(reversed(values.items())))
    assert parameters(kernel, packed.address) == [*values.values(), 0, 0]


ATTENTION = {
    "q": 0x1000, "k": 0x2000, "v": 0x3000, "bias": 0x4000, "out": 0x5000, "norms": 0x6000, "scale": 0.25,
    "batch": 2, "queries": 70, "keys": 19, "splits": 1,
}  # fmt: skip


def test_tensor_maps_are_packed_as_the_code_takes_them(compiled):
    """Each map is followed by the sizes and strides of its tensor; the code has no more parameters than are packed."""
    files = read(compiled, "9.0")
    packed = files.kernels[MAPS].pack(ATTENTION, Encoder(tensor_maps.API))
    maps = [packed.values[7 * i : 7 * i + 7] for i in range(3)]
    for (encoded, *rest), address, size in zip(maps, (0x1000, 0x2000, 0x3000), (70, 19, 19), strict=True):
        assert tensor_maps.decode(bytes(encoded)) == tensor_maps.EncodedMap(
            "fp16", address, (256, size, 2), (2, 512, 512 * size), (64, 64, 1), 128
        )
        assert ctypes.addressof(encoded) % 64 == 0
        assert [value.value for value in rest] == [2, size, 256, 256 * size, 256, 1]
    assert [value.value for value in packed.values[21:]] == [*list(ATTENTION.values())[3:], 0, 0]
    ptx = (files.folder / f"{MAPS}.ptx").read_text("utf-8")
    sizes = {"b8": 128, "u32": 4, "f32": 4, "u64": 8}
    kinds = re.findall(r"\.param (?:\.align 64 )?\.(\w+)", ptx[: ptx.index("\n{")])
    assert [sizes[kind] for kind in kinds] == [ctypes.sizeof(value) for value in packed.values]
    assert packed.address


@pytest.mark.parametrize(
    ("where", "value"),
    [("shape", ["batch", "nobody", 256]), ("box", [1, 64]), ("box", [1, 64, 512]), ("box", None), ("swizzle", 7),
     ("swizzle", "wide")],
)  # fmt: skip
def test_damaged_maps(folder, where, value):
    tensor = {"shape": ["batch", "keys", 256], "box": [1, 64, 64], "swizzle": 128}
    change(folder, MAPS, "sm_90", maps={"k": tensor | {where: value}})
    with pytest.raises(BundleError, match=rf"launch\.json is damaged: maps of {MAPS} cannot be read"):
        read(folder, "9.0")


def test_without_tensor_maps_pointers_are_passed(compiled, gpu, stream, caplog):
    opened = Kernels(read(compiled, "9.0"), Driver(gpu))
    opened.launch(MAPS, stream, **ATTENTION)
    assert gpu.launched[-1].grid == (2, 2, 1)  # 64 queries a block
    gpu.fails["cuGetProcAddress"] = 1
    without = Kernels(opened.files, Driver(gpu))
    without.launch(MAPS, stream, **ATTENTION)
    assert gpu.launched[-1].grid == (1, 2, 1)  # 128 queries a block
    assert "the driver has no cuTensorMapEncodeTiled: cuGetProcAddress failed: invalid argument" in caplog.text
    without.launch(MAPS, stream, **ATTENTION)
    assert caplog.text.count("attention_fp16 is launched instead") == 1
    opened.close()
    without.close()


@pytest.mark.parametrize("other", [MAPS, "resize"])
def test_a_kernel_that_cannot_take_its_place(folder, other):
    change(folder, MAPS, "sm_90", fallback=other)
    with pytest.raises(BundleError, match=rf"damaged: {other} cannot be launched in place of {MAPS}"):
        read(folder, "9.0")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"picture": 4097}, EngineError, "picture is at 0x1001, no multiple of 16"),
        ({"source": 0}, EngineError, "source is a null pointer"),
        ({"width": 1 << 31}, EngineError, "width is 2147483648, which does not fit i32"),
        ({"height": 70000}, EngineError, "a launch has at most"),
        ({"depth": 1}, TypeError, "missing or unknown: depth"),
    ],
)
def test_what_cannot_be_passed(compiled, changes, error, message):
    kernel = read(compiled, "8.0").kernels["resize"]
    with pytest.raises(error, match=message):
        (kernel.blocks if "height" in changes else kernel.pack)(RESIZE | changes)
    with pytest.raises(TypeError, match="missing or unknown: width"):
        kernel.pack({name: value for name, value in RESIZE.items() if name != "width"})


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def stream(gpu: Gpu):
    """A stream, with a context pushed."""
    with open_device(gpu) as device:
        yield device.create_stream()
        device.close()
    gpu.nothing_is_left()


@pytest.mark.parametrize(("capability", "zero"), [("9.0", b""), ("8.9", b"\0")])
def test_a_launch(compiled, gpu, stream, capability, zero):
    opened = Kernels(read(compiled, capability), Driver(gpu))
    assert "resize" in opened
    assert "merge" not in opened
    for _ in range(2):
        opened.launch("resize", stream, **RESIZE)
    opened.launch("resize", stream, **(RESIZE | {"height": 0}))  # nothing to do
    assert len(gpu.modules) == 1
    assert next(iter(gpu.modules.values())) == opened.files.code["resize"] + zero
    first, second = gpu.launched
    assert first.function is second.function
    assert (first.grid, first.block, first.function.name) == ((2, 300, 1), (128, 1, 1), b"resize")
    opened.close()
    opened.close()


def test_much_shared_memory_is_asked_for(compiled, gpu, stream):
    opened = Kernels(read(compiled, "8.0"), Driver(gpu))
    kernel = opened.files.kernels["attention_fp16"]
    assert kernel.shared > driver.STATIC_SHARED
    assert opened.constants("attention_fp16")["WIDTH"] == 256
    opened.launch("attention_fp16", stream, **dict.fromkeys(kernel.arguments, 256))
    assert gpu.launched[0].function.shared == kernel.shared
    opened.close()


def test_what_the_driver_refuses(compiled, gpu, stream):
    opened = Kernels(read(compiled, "8.9"), Driver(gpu))
    gpu.fails["cuFuncSetAttribute"] = 1
    arguments = dict.fromkeys(opened.files.kernels["attention_fp16"].arguments, 256)
    with pytest.raises(EngineError, match=r"attention_fp16\.ptx cannot be loaded: cuFuncSetAttribute failed: invalid"):
        opened.launch("attention_fp16", stream, **arguments)
    assert gpu.modules == {}
    gpu.fails["cuModuleLoadData"] = 209
    with pytest.raises(EngineError, match=r"resize\.ptx cannot be loaded: cuModuleLoadData failed: no kernel image"):
        opened.launch("resize", stream, **RESIZE)
    gpu.fails = {"cuLaunchKernel": 700}
    with pytest.raises(EngineError, match=r"cuLaunchKernel failed: an illegal memory access \(700\)"):
        opened.launch("resize", stream, **RESIZE)
    with pytest.raises(EngineError, match="holds no kernel merge, only resize, gather_fp16, attention_fp16"):
        opened.launch("merge", stream)
    opened.close()
