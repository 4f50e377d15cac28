"""An emulator of compiled kernels: PTX as Triton writes it for sm_80, on numpy, all threads of a block in step.

Kernels for sm_90 and sm_120 run too, but for `attention`, which has TMA, wgmma or stmatrix there.

`PtxKernels` stands for `isnet_trt.cuda.kernels.Kernels` and reads, packs and launches as that does, so that arguments,
grids and alignment are the runtime's. Blocks run one after the other in a random order. What Triton's interpreter
cannot show is seen here: `ptx_memory.Fault`, products in the matrix units' own layout and types, asynchronous copies
that are read too early, contraction to fused multiply-adds. Not seen: threads of a block that are out of step (a
missing barrier), the assembler's work, time (but see tests/ptx_counts.py).
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import ptx_arithmetic as ptx
import tensor_maps
from numpy.typing import NDArray
from ptx_memory import Bytes, Fault, Memory, Shared

from isnet_trt.cuda import kernels
from isnet_trt.cuda.tensor_maps import Encoder

Array = NDArray[Any]
_KINDS = {"b": "u", "u": "u", "s": "i", "f": "f"}
_WORDS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SMEM = "global_smem"


def _numpy(kind: str) -> np.dtype[Any]:
    """numpy's type of a PTX type such as ``s32``."""
    return np.dtype(f"{_KINDS[kind[0]]}{int(kind[1:]) // 8}")


def _operands(text: str) -> list[str]:
    """Split at commas outside brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[]+)+", text) if part.strip()]


def _members(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{} ").split(",")]


class Program:
    """The instructions of one entry: (opcode's parts, operands, guard, text), and the places of labels."""

    def __init__(self, text: str) -> None:
        begin = text.index(".entry")
        body = text.index("{", begin)
        header, code = text[begin:body], re.sub(r"//[^\n]*", "", text[body + 1 : text.index("\n}", body)])
        self.parameters = re.findall(r"\.param \.(\w+)[^\n]*?(\w+)\s*[,\n]", header)
        self.threads = int(re.findall(r"\.reqntid (\d+)", header)[0])
        self.widths = {name: int(bits) for bits, name in re.findall(r"\.reg \.b(\d+)\s+%(\w+)<", code)}
        self.code: list[tuple[list[str], list[str], str, str]] = []
        self.labels: dict[str, int] = {}
        for statement in re.findall(r"\$\w+:|[^;\n]+(?=;)", code):
            self._add(statement.strip())

    def _add(self, statement: str) -> None:
        if statement.endswith(":"):
            self.labels[statement[:-1]] = len(self.code)
            return
        guard, opcode, rest = re.findall(r"^(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*)$", statement)[0] or ("", "", "")
        if not opcode.startswith("."):
            self.code.append((opcode.split("."), _operands(rest), guard, statement))


class _Block:
    """One block of a launch: its registers, raw bits (threads,) or flags, and its shared memory."""

    def __init__(
        self, program: Program, memory: Memory, given: Mapping[str, Array], where: Sequence[int], shared: int
    ) -> None:
        self.program, self.memory, self.given = program, memory, given
        self.shared = Shared(shared)
        self.count = program.threads
        self.registers: dict[str, Array] = {"%tid.x": np.arange(self.count, dtype=np.uint32)}
        for axis, number in zip("xyz", where, strict=True):
            self.registers[f"%ctaid.{axis}"] = np.full(self.count, number, np.uint32)
        self.copies: list[tuple[Array, Bytes]] = []
        self.groups: list[list[tuple[Array, Bytes]]] = []

    def run(self) -> None:
        at = 0
        while at < len(self.program.code):
            parts, operands, guard, text = self.program.code[at]
            active = np.ones(self.count, bool)
            if guard:
                active = self.registers[guard.lstrip("!")] ^ guard.startswith("!")
            at += 1
            self._executed(parts, operands, active)
            if parts[0] in ("bra", "ret"):
                if active.any() != active.all():
                    raise Fault(f"{text}: threads part")
                if active.all():
                    at = self.program.labels[operands[0]] if operands else len(self.program.code)
            elif parts[0] != "bar":  # all threads are in step anyway
                self._step(parts, operands, active, text)
        if self.copies or any(self.groups):
            raise Fault("copies that were never waited for")

    def _executed(self, parts: list[str], operands: list[str], active: Array) -> None:
        """Called before each instruction; see tests/ptx_counts.py."""

    def _step(self, parts: list[str], operands: list[str], active: Array, text: str) -> None:
        try:
            _ACTIONS.get(parts[0], _Block._plain)(self, parts, operands, active)
        except Fault as fault:
            raise Fault(f"{text}: {fault}") from None

    # Operands

    def value(self, operand: str, kind: str) -> Array:
        """An operand as a PTX type; ``pred`` gives flags, ``bf16`` float32."""
        if kind == "bf16":
            return ptx.from_bfloat16(self.value(operand, "b16"))
        if kind == "pred":
            return self.registers[operand] if operand[0] == "%" else np.full(self.count, operand != "0")
        made = _numpy(kind)
        if operand[0] == "%":
            return self.registers[operand].astype(_WORDS[8 * made.itemsize]).view(made)
        return np.full(self.count, _constant(operand, 8 * made.itemsize), _WORDS[8 * made.itemsize]).view(made)

    def put(self, register: str, values: Array, active: Array) -> None:
        """Set a register; a narrower value is extended by its own sign."""
        if register == "_":
            return
        if values.dtype != bool:
            word = _WORDS[self.program.widths[re.findall(r"%([a-z]+)", register)[0]]]
            wide = np.dtype(f"{values.dtype.kind}{np.dtype(word).itemsize}")
            values = np.ascontiguousarray(values if values.dtype.itemsize == wide.itemsize else values.astype(wide))
            values = values.view(word)
        old = self.registers.get(register, np.zeros(self.count, values.dtype))
        self.registers[register] = np.where(active, values, old)

    def address(self, operand: str) -> NDArray[np.uint64]:
        base, _, offset = operand.strip("[] ").partition("+")
        return self.value(base.strip(), "u64") + np.uint64(int(offset or "0", 0))

    # Instructions

    def _plain(self, parts: list[str], operands: list[str], active: Array) -> None:
        """What computes a result from operands of one type."""
        name, kind = parts[0], parts[-1]
        if name not in ptx.PLAIN or "hi" in parts or "sat" in parts:
            raise Fault("unknown instruction")
        target, *sources = operands
        if kind == "f32x2":
            pairs = [self.value(source, "b64").view("f4").reshape(-1, 2) for source in sources]
            result = np.stack([ptx.PLAIN[name](*(pair[:, half] for pair in pairs)) for half in range(2)], 1)
            self.put(target, np.ascontiguousarray(result, np.float32).view(np.uint64)[:, 0], active)
            return
        wide = "wide" in parts
        kinds = [kind] * len(sources)
        if name in ("shl", "shr", "bfe"):
            kinds[1:] = ["u32"] * (len(sources) - 1)
        values = [self.value(one, k) for one, k in zip(sources, kinds, strict=True)]
        if wide:
            values = [one.astype(f"{one.dtype.kind}{2 * one.dtype.itemsize}") for one in values[:2]]
            values += [self.value(one, f"{kind[0]}{2 * int(kind[1:])}") for one in sources[2:]]
        if "ftz" in parts:
            values = [ptx.flush(one) for one in values]
        made = ptx.PLAIN[name](*values)
        self.put(target, ptx.flush(made) if "ftz" in parts else made, active)

    def _move(self, parts: list[str], operands: list[str], active: Array) -> None:
        """Also from parts to a whole and back, the lowest part first."""
        (target, source), kind = operands, parts[-1]
        names, sources = _members(target), _members(source)
        part = f"{kind[0]}{int(kind[1:]) // max(len(names), len(sources))}" if kind != "pred" else kind
        values = np.stack([self.value(one, part if len(sources) > 1 else kind) for one in sources], 1)
        if kind != "pred":
            values = values.view(_numpy(part if len(names) > 1 else kind))
        for name, column in zip(names, values.T, strict=True):
            self.put(name, column, active)

    def _choose(self, parts: list[str], operands: list[str], active: Array) -> None:
        first, second = (self.value(one, parts[-1]) for one in operands[1:3])
        self.put(operands[0], np.where(self.registers[operands[3]], first, second), active)

    def _compare(self, parts: list[str], operands: list[str], active: Array) -> None:
        self.put(operands[0], ptx.compared(parts[1], *(self.value(one, parts[-1]) for one in operands[1:3])), active)

    def _convert(self, parts: list[str], operands: list[str], active: Array) -> None:
        to, source = parts[-2:]
        values = [self.value(one, source) for one in operands[1:]]
        if "ftz" in parts:
            values = [ptx.flush(one) for one in values]
        if to in ("f16x2", "bf16x2"):
            narrow: Callable[[Array], Array] = ptx.to_bfloat16 if to == "bf16x2" else _to_float16
            high, low = (narrow(one).astype(np.uint32) for one in values)
            self.put(operands[0], (high << np.uint32(16)) | low, active)
        elif to == "bf16":
            self.put(operands[0], ptx.to_bfloat16(values[0]), active)
        else:
            self.put(operands[0], ptx.converted(values[0], _numpy(to), parts[1:-2]), active)

    def _load(self, parts: list[str], operands: list[str], active: Array) -> None:
        kind = _numpy(parts[-1])
        if parts[1] == "param":
            self.put(operands[0], np.full(self.count, self.given[operands[1].strip("[] ")]).view(kind), active)
            return
        names, which = _members(operands[0]), np.nonzero(active)[0]
        source = self.memory if parts[1] == "global" else self.shared
        got = np.zeros((self.count, len(names) * kind.itemsize), np.uint8)
        got[which] = source.load(self.address(operands[1])[which], got.shape[1])
        for name, column in zip(names, got.view(kind).T, strict=True):
            self.put(name, column, active)

    def _store(self, parts: list[str], operands: list[str], active: Array) -> None:
        values = np.stack([self.value(one, parts[-1]) for one in _members(operands[1])], 1)
        target = self.memory if parts[1] == "global" else self.shared
        target.store(self.address(operands[0])[active], values.view(np.uint8)[active])

    def _copy(self, parts: list[str], operands: list[str], active: Array) -> None:
        """``cp.async``: shared memory has the values only when their group has been waited for."""
        if parts[2] == "commit_group":
            self.groups.append(self.copies)
            self.copies = []
        elif parts[2] == "wait_group":
            while len(self.groups) > int(operands[0], 0):
                for addresses, values in self.groups.pop(0):
                    self.shared.store(addresses, values)
        else:
            size = int(operands[2], 0)
            read = active & (self.value(operands[3], "u32") > 0 if len(operands) > 3 else True)
            values = np.zeros((self.count, size), np.uint8)  # where nothing is read
            values[read] = self.memory.load(self.address(operands[1])[read], size)
            target = self.address(operands[0])[active]
            self.shared.forget(target, size)
            self.copies.append((target, values[active]))

    def _shuffle(self, parts: list[str], operands: list[str], active: Array) -> None:
        values, by = self.value(operands[1], "b32"), self.value(operands[2], "u32")
        self.put(operands[0], ptx.exchanged(parts[2], values, by), active)

    def _reduce(self, parts: list[str], operands: list[str], active: Array) -> None:
        self.put(operands[0], ptx.reduced(parts[2], self.value(operands[1], parts[-1])), active)

    def _multiply_matrices(self, parts: list[str], operands: list[str], active: Array) -> None:
        left, right = ([self.value(one, "b32") for one in _members(operand)] for operand in operands[1:3])
        total = [self.value(one, "f32") for one in _members(operands[3])]
        if "m16n8k16" not in parts:
            raise Fault("unknown matrices")
        made = ptx.matrix_product(left, right, total, parts[-2])
        for name, values in zip(_members(operands[0]), made, strict=True):
            self.put(name, values, active)

    def _load_matrix(self, parts: list[str], operands: list[str], active: Array) -> None:
        names = _members(operands[0])
        addresses = self.address(operands[1]).reshape(-1, ptx.WARP)[:, : 8 * len(names)]
        rows = self.shared.load(addresses.reshape(-1), 16).view(np.uint16).reshape(-1, len(names), 8, 8)
        for name, values in zip(names, ptx.matrix_rows(rows, "trans" in parts), strict=True):
            self.put(name, values, active)


def _constant(text: str, bits: int) -> int:
    """The bits of a constant."""
    if text[:2] in ("0f", "0d"):
        return int(text[2:], 16)
    return int(text.replace(_SMEM, "0").partition("+")[2] or text.replace(_SMEM, "0"), 0) & ((1 << bits) - 1)


def _to_float16(a: Array) -> Array:
    return a.astype(np.float16).view(np.uint16)


_ACTIONS: dict[str, Callable[[_Block, list[str], list[str], Array], None]] = {
    "mov": _Block._move, "selp": _Block._choose, "setp": _Block._compare, "cvt": _Block._convert, "ld": _Block._load,
    "st": _Block._store, "cp": _Block._copy, "shfl": _Block._shuffle, "redux": _Block._reduce,
    "mma": _Block._multiply_matrices, "ldmatrix": _Block._load_matrix,
}  # fmt: skip


def compile_kernels(folder: PathLike[str], *options: str) -> None:
    """Compile into ``folder``/sm_80, in a process without the interpreter."""
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", "--arch", "sm_80", "--out", str(folder), *options]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run(command, check=True, capture_output=True, env=environment)


class PtxKernels:
    """The kernels of a folder ``sm_80``, run from their PTX on `Memory`."""

    def __init__(
        self, folder: PathLike[str], seed: int = 0, memory: Memory | None = None, capability: str = "8.0"
    ) -> None:
        self.files = kernels.read(folder, capability)
        self.memory = memory or Memory()
        self._encoder = Encoder(tensor_maps.API)
        self._order = random.Random(seed)
        self._programs: dict[str, Program] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.files.kernels

    def constants(self, name: str) -> dict[str, Any]:
        return dict(self.files.kernels[name].constants)

    def launch(self, name: str, stream: int, **arguments: int | float) -> None:
        kernel = self.files.kernels[name]
        if name not in self._programs:
            self._programs[name] = Program((self.files.folder / f"{name}.ptx").read_text("utf-8"))
        program, values = self._programs[name], kernel.pack(arguments, self._encoder).values
        given = {}
        for (kind, parameter), value in zip(program.parameters, values, strict=True):
            given[parameter] = np.frombuffer(bytes(value), _numpy(kind))[0]
        places = list(np.ndindex(*kernel.blocks(arguments)))
        self.memory.begin()
        with np.errstate(all="ignore"):
            self._run(program, given, places, kernel.shared)

    def _run(self, program: Program, given: Mapping[str, Array], places: list[tuple[int, ...]], shared: int) -> None:
        self._order.shuffle(places)
        for self.memory.block, place in enumerate(places):
            _Block(program, self.memory, given, place, shared).run()
