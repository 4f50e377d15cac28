"""Compiling ahead of time, in processes of their own, without a GPU."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from children import explained

from isnet_trt.cuda.architectures import KERNEL_TARGETS
from isnet_trt.errors import BuildError
from isnet_trt.kernels import compile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")


def compile_kernels(*options, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | variables
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)


def test_files_and_launch_data_belong_together(tmp_path):
    ran = compile_kernels(
        "--arch", "8.6", "--dtype", "fp16", "--only", "attention_combine", "resize", "--out", tmp_path
    )
    assert ran.returncode == 0, explained(ran)
    assert "2 kernels, none spills" in ran.stdout
    folder = tmp_path / "sm_86"
    data = json.loads((folder / "launch.json").read_text("utf-8"))
    assert (data["schema"], data["arch"]) == (1, "sm_86")
    assert set(data["kernels"]) == {"resize", "attention_combine_fp16"}
    assert {path.name for path in folder.iterdir()} == {
        "launch.json", "resize.ptx", "resize.cubin", "attention_combine_fp16.ptx", "attention_combine_fp16.cubin"
    }  # fmt: skip
    assert data["kernels"]["attention_combine_fp16"]["grid"] == [[["rows", 4]], [], []]
    for name, entry in data["kernels"].items():
        ptx, cubin = (folder / f"{name}.ptx").read_bytes(), (folder / f"{name}.cubin").read_bytes()
        assert hashlib.sha256(ptx).hexdigest() == entry["ptx_sha256"]
        assert hashlib.sha256(cubin).hexdigest() == entry["cubin_sha256"]
        assert cubin[:4] == b"\x7fELF"
        assert not any(b"gather_windows.py" in code or b"attention.py" in code for code in (ptx, cubin))
        assert_describes(entry, ptx.decode())


def test_what_later_gpus_run_fits_their_shared_memory(tmp_path):
    """The PTX of sm_80 is also for 8.6, 8.9 and 12.x, whose blocks have 99 KiB at most (CUDA programming guide)."""
    ran = compile_kernels("--arch", "sm_80", "--dtype", "fp16", "--only", "attention_fp16", "--out", tmp_path)
    assert ran.returncode == 0, explained(ran)
    data = json.loads((tmp_path / "sm_80" / "launch.json").read_text("utf-8"))
    assert data["kernels"]["attention_fp16"]["shared_bytes"] <= 99 * 1024


def assert_describes(entry, ptx):
    """The entry has the arguments, the threads and the target that the PTX has."""
    header = ptx[ptx.index(".entry") : ptx.index("{", ptx.index(".entry"))]
    assert entry["entry"] in header
    kinds = re.findall(r"\.param \.(\w+)", header)
    wanted = ["u64" if kind.startswith("*") or kind == "i64" else "u32" for _, kind in entry["arguments"]]
    assert kinds == wanted + ["u64"] * entry["trailing_null_pointers"]
    assert f".reqntid {entry['threads']}" in header
    assert re.search(rf"^\.target {entry['target']}\b", ptx, re.MULTILINE)
    assert ".version 8.0" in ptx
    assert 0 < entry["registers"] <= 255
    assert entry["spill_bytes"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--arch", "sm_75"), "'sm_75' is no architecture that kernels are made for; there are sm_80"),
        (("--only", "convolution"), "no kernel's name begins so; there are resize"),
        (("--classes", "0"), "argument --classes: invalid whole number"),
        (("--classes", "4097"), "--classes 4097: it must be 1 to 4096"),
        (("--out", "/dev/null/x", "--arch", "sm_80", "--only", "resize"), "--out /dev/null/x/sm_80"),
    ],
)
def test_what_cannot_be_done_is_said(options, message):
    ran = compile_kernels(*options)
    assert ran.returncode == 2, explained(ran)
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_interpreter_does_not_compile():
    ran = compile_kernels("--arch", "sm_80", "--only", "resize", TRITON_INTERPRET="1")
    assert ran.returncode == 2, explained(ran)
    assert "TRITON_INTERPRET=1 is set" in ran.stderr


DECLARATIONS = """
import dataclasses
from isnet_trt.cuda.kernel_specs import bundle_kernels, finite
from isnet_trt.errors import BuildError
from isnet_trt.kernels import compile
for spec in bundle_kernels(90, ("fp32", "fp16", "bf16"), 19, 32):
    compile._source(spec)
try:
    compile._source(dataclasses.replace(finite("fp32"), arguments={"flag": "*i32", "values": "*fp32"}))
except BuildError as error:
    print(error)
"""


def test_declarations_have_their_functions_arguments():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", DECLARATIONS], capture_output=True, text=True, env=environment)
    assert ran.stdout == (
        "finite_fp32 is declared with other arguments than its function has: values, flag, at, count, BLOCK\n"
    ), ran.stderr


def test_hidden_parameters_are_counted():
    """Another version of Triton may have more of them, and the driver reads as many pointers as the code has."""
    lines = ".param .u64 .ptr .global .align 1 k_param_0,\n.param .u32 k_param_1,\n"
    ptx = f".version 8.0\n.visible .entry k(\n{lines}{lines}.param .u64 k_param_4\n)\n.reqntid 128\n{{\n}}"
    assert compile.trailing_parameters(ptx.encode(), ["u64", "u32"]) == 3
    with pytest.raises(BuildError, match="Triton passes u64 u32 u64 u32 u64 where the runtime would pass u64 u64"):
        compile.trailing_parameters(ptx.encode(), ["u64", "u64"])


SPILLING = """
import sys
from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.architectures import KERNEL_TARGETS
from isnet_trt.cuda.kernel_specs import bundle_kernels
from isnet_trt.kernels import compile
kernel_specs.attention_tile = lambda dtype, arch: kernel_specs.AttentionTile(64, 32, 1, 1)
options = ["--arch", "sm_80", "--dtype", "fp16", "--only", "attention_fp16"]
sys.exit(compile.main(options + sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("options", "status"), [((), 1), (("--allow-spills",), 0)])
def test_a_spill_fails_the_command_unless_allowed(options, status):
    ran = subprocess.run([sys.executable, "-c", SPILLING, *options], capture_output=True, text=True)
    assert ran.returncode == status, explained(ran)
    assert "SPILLS" in ran.stdout
    assert "1 of 1 kernels spill registers: attention_fp16 (sm_80)" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arch", KERNEL_TARGETS)
def test_no_kernel_spills_on_any_architecture(arch):
    ran = compile_kernels("--arch", f"sm_{arch}", "--jobs", os.cpu_count() or 1)
    assert ran.returncode == 0, explained(ran)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [19, 300, 900, 2048, 4096])
def test_no_number_of_classes_spills(classes):
    ran = compile_kernels(
        "--only", "accumulate", "finish", "upsample", "--classes", classes, "--arch", "sm_80", "sm_90"
    )
    assert ran.returncode == 0, explained(ran)


MAPS = """
from isnet_trt.cuda.architectures import AttentionTile
from isnet_trt.cuda.kernel_specs import attention_by_maps
from isnet_trt.kernels.compile import compile_kernel
for arch, tile in ((100, AttentionTile(128, 64, 8, 2)), (120, AttentionTile(64, 32, 8, 2))):
    compiled = compile_kernel(attention_by_maps("fp16", 256, False, tile), arch)
    assert compiled.entry["maps"]["q"] == {"shape": ["batch", "queries", 256], "box": [1, tile[0], 64], "swizzle": 128}
    assert b"cp.async.bulk.tensor.3d" in compiled.ptx
"""


@pytest.mark.slow
def test_tensor_maps_compile_for_later_architectures_too():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", MAPS], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, explained(ran)


@pytest.mark.slow
def test_the_demos_attention_does_not_spill():
    ran = compile_kernels("--only", "attention", "--width", 32)
    assert ran.returncode == 0, explained(ran)
    assert "attention_part_bf16_w32" in ran.stdout


def test_context_kernels_by_name(tmp_path):
    """A bundle has those that its graph needs, of whatever type, and no more."""
    wanted = ("attention_combine_bf16_w32", "pool_fp32_fp16")
    options = ("--arch", "sm_80", "--dtype", "fp32", "--only", "a", "p", "--width", 32, "--context", *wanted)
    ran = compile_kernels(*options, "--out", tmp_path)
    assert ran.returncode == 0, explained(ran)
    kernels = set(json.loads((tmp_path / "sm_80" / "launch.json").read_text("utf-8"))["kernels"])
    assert {name for name in kernels if not name.startswith("accumulate")} == set(wanted)
    ran = compile_kernels("--context", "attention_fp128")
    assert ran.returncode == 2, explained(ran)
    assert "--context attention_fp128: no kernel has that name" in ran.stderr


def test_importing_the_package_loads_neither_triton_nor_torch():
    code = "import sys, isnet_trt.kernels, isnet_trt.kernels.launch; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"triton", "torch"} & set(loaded)
