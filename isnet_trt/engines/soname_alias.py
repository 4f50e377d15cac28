"""A second name for a shared library that is already loaded.

A caller that opens ``libx.so`` fails where only ``libx.so.1`` is installed. Before the loader searches any folder, it
compares the name with the sonames of the loaded objects. So an object without code or symbols is loaded whose soname is
the missing name and which needs the real library: the caller gets that object, and symbols are found in the library
behind it. A symbolic link would not do: the loader then knows the library by the link's path, not by the bare name.
Nothing is written beside the real library, and no environment variable is set.

The object is 64-bit little-endian ELF (System V ABI, chapters 4 and 5: https://refspecs.linuxfoundation.org/elf/):
one segment that holds the headers, the dynamic section and the three tables that every shared object must have. Tried
on x86_64; for aarch64 only the machine's number differs.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
import tempfile
from pathlib import Path

_MACHINES = {"x86_64": 62, "aarch64": 183}  # EM_X86_64, EM_AARCH64
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_READ_WRITE = 6
_PAGE = 0x10000
"""Alignment of the segment: the largest page of the two machines."""
_NEEDED, _HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 1, 4, 5, 6, 10, 11, 14
_HEADER, _SEGMENT, _SYMBOL = 64, 56, 24


def alias_object(name: str, target: str, machine: str) -> bytes:
    """A shared object of soname ``name`` that needs the library of soname ``target``.

    ``machine`` is ``x86_64`` or ``aarch64``.
    """
    text = b"\0" + name.encode() + b"\0" + target.encode() + b"\0"
    # Offsets of the parts behind the header and the segments: symbols, hash table, strings, dynamic section.
    symbols = _HEADER + 3 * _SEGMENT
    hashes = symbols + _SYMBOL
    strings = hashes + 16
    dynamic = -(-(strings + len(text)) // 8) * 8
    # Values of SONAME and NEEDED are offsets in the string table, which begins with a zero byte.
    names = ((_SONAME, 1), (_NEEDED, 2 + len(name)), (_STRTAB, strings), (_STRSZ, len(text)))
    tables = ((_HASH, hashes), (_SYMTAB, symbols), (_SYMENT, _SYMBOL), (0, 0))
    section = b"".join(struct.pack("<2Q", *entry) for entry in (*names, *tables))
    segments = (
        struct.pack("<2I6Q", kind, _READ_WRITE, offset, offset, offset, size, size, alignment)
        for kind, offset, size, alignment in (
            (_PT_LOAD, 0, dynamic + len(section), _PAGE),
            (_PT_DYNAMIC, dynamic, len(section), 8),
            # Without this entry the loader takes it that the object needs an executable stack.
            (_PT_GNU_STACK, 0, 0, 8),
        )
    )
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<2HI3QI6H", 3, _MACHINES[machine], 1, 0, _HEADER, 0, 0, _HEADER, _SEGMENT, 3, 0, 0, 0)
    hash_table = struct.pack("<4I", 1, 1, 0, 0)  # one bucket and one chain, both empty
    return (header + b"".join(segments) + bytes(_SYMBOL) + hash_table + text).ljust(dynamic, b"\0") + section


def load_alias(name: str, target: str) -> ctypes.CDLL:
    """Make the loaded library ``target`` known to this process as ``name`` as well.

    The object is written to a folder that only this user can enter, and is gone again when this returns.

    Raises:
        OSError: this platform is another one, or its loader refuses; the message says which.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES:
        raise OSError(f"libraries cannot be given a second name on {sys.platform} {machine}")
    with tempfile.TemporaryDirectory(prefix="isnet_trt-") as folder:
        path = Path(folder, name)
        path.write_bytes(alias_object(name, target, machine))
        # The loader maps the file, so that the object stays loaded after the folder is gone.
        return ctypes.CDLL(str(path))
