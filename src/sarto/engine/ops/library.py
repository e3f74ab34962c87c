"""The library compiled from the C++ files of this folder: its place, its functions, and tensors as their arguments.

The library is built with the package, once for each processor level, and is absent without a compiler. It must be
loaded after torch, whose OpenMP runtime it uses: then the process has one thread pool.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEVELS = {"AVX512": ("v4", "v3"), "AVX2": ("v3",), "DEFAULT": ("base",)}
"""torch's name of the processor's capability → builds that run on it, best first."""
INT, INT64, POINTER, FLOAT = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
"""Types of arguments."""


def find_library() -> Path | None:
    """The best build for this processor; None if the package has none."""
    return next(libraries(), None)


def libraries() -> Iterator[Path]:
    """All builds that run on this processor, the best first."""
    # torch's level, not the processor's: ATEN_CPU_CAPABILITY may limit it, and our kernels must not exceed it.
    for level in LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("base",)):
        for suffix in EXTENSION_SUFFIXES:
            path = Path(__file__).with_name(f"_kernels_{level}{suffix}")
            if path.exists():
                yield path


def load(path: Path, signatures: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The functions `sarto_NAME` of a build, by name; `signatures` has the types of their arguments. Raises OSError for
    a library that cannot be loaded, AttributeError for one without a function."""
    library, functions = ctypes.CDLL(str(path)), dict[str, Any]()
    for name, types in signatures.items():
        function = getattr(library, f"sarto_{name}")
        # Without argtypes, ctypes passes sizes and addresses as 32-bit integers.
        function.argtypes, function.restype = types, None
        functions[name] = function
    return functions


def works(path: Path, test: str) -> bool:
    """Whether a build has the function `sarto_TEST` and it gives true."""
    function = getattr(ctypes.CDLL(str(path)), f"sarto_{test}", None)
    return function is not None and bool(function())


def is_half(tensor: Tensor) -> bool:
    assert tensor.dtype in (torch.bfloat16, torch.float32), tensor.dtype
    return tensor.dtype == torch.bfloat16


def dense(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def rows_of(tensor: Tensor) -> int:
    """The address of a matrix with dense rows; there may be gaps between rows."""
    assert tensor.stride(1) == 1
    return tensor.data_ptr()
