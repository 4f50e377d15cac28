"""An emulator of compiled kernels: PTX as Triton writes it for sm_80, sm_90 and sm_120, on numpy.

`PtxKernels` stands for `isnet_trt.cuda.kernels.Kernels` and reads, packs and launches as that does, so that arguments,
grids and alignment are the runtime's. Blocks run one after the other in a random order; in a block, warps that are at
the same instruction run in step, others in turn (tests/ptx_warps.py). What Triton's interpreter cannot show is seen
here: `ptx_memory.Fault`, products in the matrix units' own layout and types (Hopper's: tests/ptx_hopper.py), copies
that are read too early (of tiles: tests/ptx_bulk.py), contraction to fused multiply-adds, deadlocks. Not seen: warps
that a missing barrier would let out of step, clusters of blocks, the assembler's work, time (but see
tests/ptx_counts.py).
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
import ptx_bulk
import ptx_hopper
import tensor_maps
from numpy.typing import NDArray
from ptx_memory import Fault, Memory, Shared
from ptx_program import SHARED_SYMBOL, Program, members
from ptx_warps import Schedule

from isnet_trt.cuda import kernels
from isnet_trt.cuda.tensor_maps import Encoder

Array = NDArray[Any]
_KINDS = {"b": "u", "u": "u", "s": "i", "f": "f"}
_WORDS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_PAIRS = {"f32x2": "b64", "f16x2": "b32", "bf16x2": "b32"}
"""Types of two numbers -> the register's."""


def _numpy(kind: str) -> np.dtype[Any]:
    """numpy's type of a PTX type such as ``s32``."""
    return np.dtype(f"{_KINDS[kind[0]]}{int(kind[1:]) // 8}")


class Block:
    """One block of a launch: its registers, raw bits (threads,) or flags, its shared memory, and its warps.

    ``now`` are the warps that run; what an instruction does is done for their threads.
    """

    def __init__(
        self,
        program: Program,
        memory: Memory,
        given: Mapping[str, Any],
        where: Sequence[int],
        shared: int,
        order: random.Random | None = None,
    ) -> None:
        self.program, self.memory, self.given = program, memory, given
        self.shared = Shared(shared)
        self.count = program.threads
        self.registers: dict[str, Array] = {"%tid.x": np.arange(self.count, dtype=np.uint32)}
        for axis, number in zip("xyz", where, strict=True):
            self.registers[f"%ctaid.{axis}"] = np.full(self.count, number, np.uint32)
        self.schedule = Schedule(self.count, order or random.Random(0))
        self.now = self.schedule.running[0]
        self.barriers: dict[int, ptx_hopper.Barrier] = {}

    def run(self) -> None:
        while self.schedule.running:
            self.now = self.schedule.next()
            while self.now in self.schedule.running and not self.now.waits_for:
                self._one()
        if any(barrier.copies for barrier in self.barriers.values()):
            raise Fault("copies of tensors that were never waited for")

    def _one(self) -> None:
        """The next instruction of the warps that run."""
        parts, operands, guard, text = self.program.code[self.now.at]
        if parts[0] == "wgmma" and self.schedule.gather(self.now, ptx_hopper.GROUP):
            return
        active = self.now.threads
        if guard:
            active = active & (self.registers[guard.lstrip("!")] ^ guard.startswith("!"))
        self.now.at += 1
        self._executed(parts, operands, active)
        try:
            self._check_unlocked(parts, operands)
            _ACTIONS.get(parts[0], Block._plain)(self, parts, operands, active)
        except Fault as fault:
            raise Fault(f"{text}: {fault}") from None

    def _executed(self, parts: list[str], operands: list[str], active: Array) -> None:
        """Called before each instruction; see tests/ptx_counts.py."""

    def _check_unlocked(self, parts: list[str], operands: list[str]) -> None:
        """Fault if a register is that of a product of matrices which has not been waited for."""
        for products in (*self.now.products, self.now.issued) if parts[0] != "wgmma" else ():
            names = re.findall(r"%\w+", " ".join(operands)) if products.registers else ()
            if early := products.registers.intersection(names):
                raise Fault(f"{min(early)} belongs to a product that was not waited for")

    # Where to go on

    def _branch(self, parts: list[str], operands: list[str], active: Array) -> None:
        self.schedule.part(self.now, active, self.program.labels[operands[0]])

    def _branch_by_index(self, parts: list[str], operands: list[str], active: Array) -> None:
        index, labels = self.value(operands[0], "u32"), self.program.targets[operands[1]]
        last = int(index[active][0])
        for number in np.unique(index[active]):
            if number != last:
                self.schedule.part(self.now, active & (index == number), self.program.labels[labels[number]])
        self.now.at = self.program.labels[labels[last]]

    def _return(self, parts: list[str], operands: list[str], active: Array) -> None:
        self.schedule.part(self.now, active, len(self.program.code))
        ended = [warps for warps in self.schedule.running if warps.at == len(self.program.code)]
        if any(warps.busy for warps in ended):
            raise Fault("copies or products that were never waited for")
        self.schedule.running = [warps for warps in self.schedule.running if warps not in ended]

    def _barrier(self, parts: list[str], operands: list[str], active: Array) -> None:
        if (active != self.now.threads).any():
            raise Fault("a barrier for some threads")
        if parts[1] != "warp":  # threads of a warp are in step
            threads = int(operands[1], 0) if len(operands) > 1 else self.count
            self.schedule.barrier(self.now, int(operands[0], 0), threads, "arrive" not in parts)

    def _nothing(self, parts: list[str], operands: list[str], active: Array) -> None:
        """What has no effect on results here."""

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
        return np.full(self.count, self._constant(operand, 8 * made.itemsize), _WORDS[8 * made.itemsize]).view(made)

    def put(self, register: str, values: Array, active: Array) -> None:
        """Set a register; a narrower value is extended by its own sign."""
        if register == "_":
            return
        if values.dtype != bool:
            word = _WORDS[self.program.widths[re.findall(r"%([a-z]+)", register)[0]]]
            wide = np.dtype(f"{values.dtype.kind}{np.dtype(word).itemsize}")
            values = np.ascontiguousarray(values if values.dtype.itemsize == wide.itemsize else values.astype(wide))
            values = values.view(word)
        self.now.changed.add(register)
        old = self.registers.get(register, np.zeros(self.count, values.dtype))
        self.registers[register] = np.where(active, values, old)

    def _constant(self, text: str, bits: int) -> int:
        """The bits of a constant, or the address of a symbol."""
        if text[:2] in ("0f", "0d"):
            return int(text[2:], 16)
        if text in self.program.symbols:
            return self.program.symbols[text]
        text = text.replace(SHARED_SYMBOL, "0")
        return int(text.partition("+")[2] or text, 0) & ((1 << bits) - 1)

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
        if kind.endswith("x2"):
            self.put(target, ptx.packed(name, [self.value(one, _PAIRS[kind]) for one in sources], kind), active)
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
        names, sources = members(target), members(source)
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
        names, which = members(operands[0]), np.nonzero(active)[0]
        source = self.memory if parts[1] == "global" else self.shared
        got = np.zeros((self.count, len(names) * kind.itemsize), np.uint8)
        got[which] = source.load(self.address(operands[1])[which], got.shape[1])
        for name, column in zip(names, got.view(kind).T, strict=True):
            self.put(name, column, active)

    def _store(self, parts: list[str], operands: list[str], active: Array) -> None:
        values = np.stack([self.value(one, parts[-1]) for one in members(operands[1])], 1)
        target = self.memory if parts[1] == "global" else self.shared
        target.store(self.address(operands[0])[active], values.view(np.uint8)[active])

    def _store_matrix(self, parts: list[str], operands: list[str], active: Array) -> None:
        values = [self.value(one, "b32") for one in members(operands[1])]
        rows = ptx.matrix_parts(values, "trans" in parts)
        which = np.repeat(active.reshape(-1, ptx.WARP)[:, 0], 8 * len(values))
        addresses = self.address(operands[0]).reshape(-1, ptx.WARP)[:, : 8 * len(values)].reshape(-1)
        self.shared.store(addresses[which], rows.reshape(-1, 8).view(np.uint8)[which])

    def _copy(self, parts: list[str], operands: list[str], active: Array) -> None:
        """``cp.async``: shared memory has the values only when their group has been waited for."""
        if "bulk" in parts:
            ptx_bulk.copy(self, parts, operands, active)
        elif parts[2] == "commit_group":
            self.now.groups.append(self.now.copies)
            self.now.copies = []
        elif parts[2] == "wait_group":
            while len(self.now.groups) > int(operands[0], 0):
                for _, addresses, values in self.now.groups.pop(0):
                    self.shared.store(addresses, values)
        else:
            size = int(operands[2], 0)
            read = active & (self.value(operands[3], "u32") > 0 if len(operands) > 3 else True)
            values = np.zeros((self.count, size), np.uint8)  # where nothing is read
            values[read] = self.memory.load(self.address(operands[1])[read], size)
            target = self.address(operands[0])[active]
            self.shared.forget(target, size)
            self.now.copies.append((np.nonzero(active)[0], target, values[active]))

    def _shuffle(self, parts: list[str], operands: list[str], active: Array) -> None:
        values, by = self.value(operands[1], "b32"), self.value(operands[2], "u32")
        self.put(operands[0], ptx.exchanged(parts[2], values, by), active)

    def _reduce(self, parts: list[str], operands: list[str], active: Array) -> None:
        self.put(operands[0], ptx.reduced(parts[2], self.value(operands[1], parts[-1])), active)

    def _vote(self, parts: list[str], operands: list[str], active: Array) -> None:
        """``vote.sync.any`` and ``all`` over the active lanes of whole warps."""
        if parts[2] not in ("any", "all") or active.reshape(-1, ptx.WARP).any(1).sum() * ptx.WARP != active.sum():
            raise Fault("unknown instruction")
        flags = self.value(operands[1], "pred").reshape(-1, ptx.WARP)
        self.put(operands[0], np.repeat(getattr(flags, parts[2])(1), ptx.WARP), active)

    def _multiply_matrices(self, parts: list[str], operands: list[str], active: Array) -> None:
        left, right = ([self.value(one, "b32") for one in members(operand)] for operand in operands[1:3])
        total = [self.value(one, "f32") for one in members(operands[3])]
        if "m16n8k16" not in parts:
            raise Fault("unknown matrices")
        made = ptx.matrix_product(left, right, total, parts[-2])
        for name, values in zip(members(operands[0]), made, strict=True):
            self.put(name, values, active)

    def _load_matrix(self, parts: list[str], operands: list[str], active: Array) -> None:
        names = members(operands[0])
        which = np.repeat(active.reshape(-1, ptx.WARP)[:, 0], 8 * len(names))
        addresses = self.address(operands[1]).reshape(-1, ptx.WARP)[:, : 8 * len(names)].reshape(-1)
        rows = np.zeros((len(addresses), 8), np.uint16)
        rows[which] = self.shared.load(addresses[which], 16).view(np.uint16)
        rows = rows.reshape(-1, len(names), 8, 8)
        for name, values in zip(names, ptx.matrix_rows(rows, "trans" in parts), strict=True):
            self.put(name, values, active)


def _to_float16(a: Array) -> Array:
    return a.astype(np.float16).view(np.uint16)


_ACTIONS: dict[str, Callable[[Block, list[str], list[str], Array], None]] = {
    "mov": Block._move, "selp": Block._choose, "setp": Block._compare, "cvt": Block._convert, "ld": Block._load,
    "st": Block._store, "cp": Block._copy, "shfl": Block._shuffle, "redux": Block._reduce, "vote": Block._vote,
    "mma": Block._multiply_matrices, "ldmatrix": Block._load_matrix, "stmatrix": Block._store_matrix,
    "bra": Block._branch, "brx": Block._branch_by_index, "ret": Block._return, "bar": Block._barrier,
    "barrier": Block._barrier, "setmaxnreg": Block._nothing, "griddepcontrol": Block._nothing, **ptx_hopper.ACTIONS,
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
        for (kind, parameter, size), value in zip(program.parameters, values, strict=True):
            given[parameter] = bytes(value) if size else np.frombuffer(bytes(value), _numpy(kind))[0]
        places = list(np.ndindex(*kernel.blocks(arguments)))
        self.memory.begin()
        with np.errstate(all="ignore"):
            self._run(program, given, places, kernel.shared)

    def _run(self, program: Program, given: Mapping[str, Array], places: list[tuple[int, ...]], shared: int) -> None:
        self._order.shuffle(places)
        for self.memory.block, place in enumerate(places):
            Block(program, self.memory, given, place, shared, self._order).run()
