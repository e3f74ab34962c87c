"""The compiled part of the package: small pieces of training and decoding, optional and without torch headers.

Built once for each processor level that matters, so that a wheel runs anywhere and fast where it can; without a
compiler the package works with plain torch operations. Everything else about the package is in pyproject.toml.
"""

import platform
import sys

from setuptools import Extension, setup

SOURCES = [
    "src/sarto/engine/ops/kernels.cpp",
    "src/sarto/engine/ops/lora_rows.cpp",
    "src/sarto/engine/serving/linear_panels.cpp",
]
HEADERS = ["src/sarto/engine/ops/numbers.h"]
# No OpenMP library is linked on purpose: the symbols are found in the one torch has loaded.
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden"]
LEVELS = {
    "x86_64": {"v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"]},
    "aarch64": {"base": []},
}


def extensions() -> list[Extension]:
    if not sys.platform.startswith("linux"):
        return []
    levels = LEVELS.get(platform.machine(), {})
    return [
        Extension(
            f"sarto.engine.ops._kernels_{level}",
            SOURCES,
            depends=HEADERS,
            extra_compile_args=FLAGS + flags,
            optional=True,
        )
        for level, flags in levels.items()
    ]


setup(ext_modules=extensions())
