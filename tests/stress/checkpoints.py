"""Mutated checkpoints: each is loaded right, or refused by the project's own error that names the file.

    python tests/stress/checkpoints.py --cases 20000

Bits are flipped in every region, files are cut, extended and spliced, pickles are mutated under right checksums and
composed from random instructions. A case fails if it gives other weights in silence, any other exception, a function
called or a module imported from the file, more than 5 seconds, or more memory than the limit above what a sound file
takes.
"""

from __future__ import annotations

import codecs
import io
import itertools
import pickletools
import random
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import fuzzing
import mutations
import probe
import safetensors.torch
import torch
from torch import Tensor

from isnet_trt.errors import CheckpointError
from isnet_trt.training.checkpoint import read_state, read_weights

FILE = "case.pth"
CALL = f"cos\nsystem\n(V{fuzzing.TOUCH}\ntR".encode()
for _encoding in ("cp437", "unicode_escape", "raw_unicode_escape", "idna"):  # imported when they are first used
    codecs.lookup(_encoding)
State = dict[str, Tensor]
Mutation = Callable[[random.Random, bytes], bytes]


def flip(chance: random.Random, content: bytes) -> bytes:
    """A few bits anywhere."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_ends(chance: random.Random, content: bytes) -> bytes:
    """Bits of headers and directories, where lengths and places are."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 4))):
        place = chance.randrange(min(400, len(changed)))
        changed[place if chance.random() < 0.4 else -1 - place] = chance.randrange(256)
    return bytes(changed)


def cut(chance: random.Random, content: bytes) -> bytes:
    """The start of the file."""
    return content[: chance.randrange(len(content))]


def splice(chance: random.Random, content: bytes) -> bytes:
    """A part of the file moved, doubled or left out."""
    a, b, c = (chance.randrange(len(content)) for _ in range(3))
    return content[:a] + content[b : b + chance.randrange(1, 300)] + content[c:]


def pickled(chance: random.Random, content: bytes) -> bytes:
    """The pickle mutated, in an archive whose checksums are right."""
    if not content.startswith(b"PK"):
        return flip(chance, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    mutate = chance.choice((flip, splice, instructions, numbers))
    return archived([(name, mutate(chance, data) if name.endswith("data.pkl") else data) for name, data in entries])


def archived(entries: list[tuple[str, bytes]]) -> bytes:
    """A stored archive of ``entries``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def instructions(chance: random.Random, content: bytes) -> bytes:
    """A pickle with some of its instructions replaced by others, moved or doubled."""
    places = [place for _, _, place in pickletools.genops(content)] + [len(content)]
    parts = [content[a:b] for a, b in itertools.pairwise(places)]
    for _ in range(chance.choice((1, 1, 2, 5))):
        number = chance.randrange(len(parts))
        parts[number] = chance.choice(
            (b"", parts[chance.randrange(len(parts))], parts[number] * 2, _instruction(chance))
        )
    return b"".join(parts)


def _instruction(chance: random.Random) -> bytes:
    opcode = chance.choice(pickletools.opcodes).code.encode("latin-1")
    named = chance.choice(
        (CALL, b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n")
    )
    return chance.choice((opcode, opcode + chance.randbytes(chance.randrange(9)), named))


def numbers(chance: random.Random, content: bytes) -> bytes:
    """Sizes, strides, offsets and lengths exchanged for extreme ones."""
    parts, last = [], 0
    for opcode, _, place in list(pickletools.genops(content)):
        if opcode.name.startswith("BININT") and chance.random() < 0.02:
            parts.append(content[last:place])
            value = chance.choice((0, 1, -1, 2**31, 2**40, 2**62, 2**63, 2**70, -(2**63)))
            parts.append(b"\x8a\x0a" + value.to_bytes(10, "little", signed=True))
            last = place + 1 + {"BININT1": 1, "BININT2": 2, "BININT": 4}[opcode.name]
    return b"".join(parts) + content[last:]


def random_pickle(chance: random.Random, content: bytes) -> bytes:
    """A pickle of random instructions, alone or in an archive."""
    body = b"\x80\x02" + b"".join(_instruction(chance) for _ in range(chance.randrange(60))) + b"."
    return archived([("a/data.pkl", body), ("a/data/0", bytes(64))]) if chance.random() < 0.7 else body


MUTATIONS: tuple[Mutation, ...] = (flip, flip, flip_ends, cut, splice, pickled, pickled, pickled, random_pickle)


def sound_files(folder: Path) -> dict[str, tuple[bytes, bool]]:
    """Name -> content of sound files of one small state dict, and whether they have checksums."""
    torch.manual_seed(0)
    state = {f"layer{i}.weight": torch.randn(3, 5) for i in range(6)}
    state |= {f"layer{i}.bn.num_batches_tracked": torch.tensor(7) for i in range(3)}
    content = {
        "model": state,
        "epoch": 3,
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(4)}}, "lr": [0.1]},
    }
    files = {}
    for name, options in {
        "zip2": {},
        "zip4": {"pickle_protocol": 4},
        "old": {"_use_new_zipfile_serialization": False},
    }.items():
        torch.save(content, folder / name, **options)
        files[name] = ((folder / name).read_bytes(), name != "old")
    files["safetensors"] = (safetensors.torch.save(state), False)
    return files


class Checkpoints:
    """Mutations of files of one state dict, for `read_weights` and `read_state`."""

    memory = 1 << 30
    """Tensors may take 1 GiB (docs/checkpoints.md)."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            self.files, path = sound_files(Path(folder)), Path(folder) / FILE
            self.states = {n: (path.write_bytes(c), read_weights(path)[0])[1] for n, (c, _) in self.files.items()}

    def start(self, folder: Path) -> None:
        """Read the sound files."""
        for content, _ in self.files.values():
            mutations.put(folder / FILE, content)
            read_weights(folder / FILE)

    def write(self, number: int, folder: Path) -> str:
        """Write mutation ``number``."""
        chance = random.Random(number)
        self.name, mutation = chance.choice(list(self.files)), chance.choice(MUTATIONS)
        content, has_checksums = self.files[self.name]
        self.checked = has_checksums and mutation in (flip, flip_ends, cut)
        if chance.random() < 0.01:
            return f"{self.name}, {mutations.special_file(chance, folder / FILE)}"
        mutations.put(folder / FILE, mutation(chance, content))
        return f"{self.name}, {mutation.__name__}"

    def read(self, folder: Path) -> str:
        """Load it by both readers; weights with checksums must be the original's."""
        results = []
        for read in (lambda path: read_weights(path)[0], read_state):
            try:
                results.append(read(folder / FILE))
            except CheckpointError as error:
                refusal = error
        if not results:
            raise refusal
        weights, state = results[0].get("model", results[0]), self.states[self.name]
        if self.checked and not (weights.keys() == state.keys() and all(weights[n].equal(state[n]) for n in state)):
            return "other weights in silence"
        return fuzzing.RIGHT

    def subject(self, folder: Path) -> str:
        """The file's path."""
        return str(folder / FILE)


if __name__ == "__main__":
    sys.exit(fuzzing.run(Checkpoints(), probe.parser(__doc__, 20_000).parse_args()))
