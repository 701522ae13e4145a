"""Build of the one extension. Everything else about the package is in pyproject.toml."""

import os
import sys
import tempfile
import tomllib
from glob import glob
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# They stand behind the user's, and win. At link, too: there -Ofast, -ffast-math and -funsafe-math-optimizations make a
# library that flushes subnormal numbers in the whole process.
FLAGS = [
    "-O3",  # vectorise the loops; not -Ofast
    "-fno-fast-math",  # round as the specification says: neither this, nor one of its parts:
    "-fno-unsafe-math-optimizations",  # several of those that follow, and a library as above
    "-fno-associative-math",  # sums in another order
    "-fno-reciprocal-math",  # a product with 1/x for a quotient
    "-fno-finite-math-only",  # NaN and infinity forgotten
    "-fsigned-zeros",  # x + 0 left out
    "-fno-math-errno",  # sqrt may be one instruction: nobody reads errno
    "-fno-trapping-math",  # both sides of ?: may be computed: traps are masked while a kernel runs
    "-ffp-contract=off",  # no fused multiply-add, which rounds once where the specification rounds twice
    "-std=c11",  # static assertions, for loops with declarations
]

# What no later flag takes back: each links code that changes floating point in the whole process.
REFUSED = {"-mdaz-ftz", "-mpc32", "-mpc64"}

# The ways compilers spell OpenMP: (compile, link).
OPENMP = [
    (["-fopenmp"], ["-fopenmp"]),  # gcc, and clang with libomp
    (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),  # Apple's clang with libomp installed
]

PROBE = """
#include <omp.h>
int main(void) {
    int n = 0;
    #pragma omp parallel reduction(+:n)
    n += omp_get_thread_num() >= 0;
    return n < 1;
}
"""

VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]


class BuildExt(build_ext):
    """Adds OpenMP where a small program that uses it compiles and links, unless FASTADAM_OPENMP=0."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            raise CompileError("fastadam: Microsoft's compiler lacks what the kernel needs; only gcc and clang have it")
        refused = REFUSED.intersection([*self.compiler.compiler_so, *self.compiler.linker_so])
        if refused:
            raise CompileError(
                f"fastadam: {', '.join(sorted(refused))} would change floating point in every process that imports "
                "fastadam: remove it from CFLAGS and LDFLAGS"
            )
        flags = self.openmp_flags()
        for extension in self.extensions:
            extension.extra_compile_args += flags[0]
            extension.extra_link_args += flags[1]
        super().build_extensions()

    def openmp_flags(self):
        if os.environ.get("FASTADAM_OPENMP") == "0":
            print("fastadam: OpenMP switched off by FASTADAM_OPENMP=0; the build is serial")
            return [], []
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(PROBE)
            for compile_flags, link_flags in OPENMP:
                try:
                    objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=compile_flags)
                    self.compiler.link_executable(objects, "probe", output_dir=folder, extra_postargs=link_flags)
                except Exception as error:  # each compiler class raises its own
                    print(f"fastadam: no OpenMP with {' '.join(compile_flags)}: {error}", file=sys.stderr)
                else:
                    return compile_flags, link_flags
        print("fastadam: this compiler has no OpenMP; the build is serial", file=sys.stderr)
        return [], []


setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=cythonize(
        [
            Extension(
                "fastadam._core",
                ["fastadam/_core.pyx", *sorted(glob("csrc/*.c"))],
                depends=[
                    *glob("fastadam/*.px[di]"),
                    *glob("csrc/*.h"),
                    *glob("csrc/*.inc"),
                    *glob("fastadam/include/*"),
                ],
                include_dirs=["csrc", "fastadam/include", numpy.get_include()],
                define_macros=[
                    ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
                    ("FASTADAM_VERSION", f'"{VERSION}"'),
                ],
                extra_compile_args=list(FLAGS),
                extra_link_args=list(FLAGS),
            )
        ],
        compiler_directives={
            "boundscheck": False,  # the loops over the arrays index lists whose lengths were compared before
            "wraparound": False,
            "cdivision": True,  # no Python semantics for // of sizes
            "autotestdict": False,  # docstrings are found as they are
        },
    ),
)
