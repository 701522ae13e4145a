"""Does a test notice it? Applies each mistake here to a copy of the tree, and runs the tests that should fail.

    python tests/mutants/run.py --full | --sample=N | NAME...    # all, every N-th, or some

A mutant is a patch NAME.patch; the lines before its diff say what is wrong with it, and "Tests: " what pytest is to run
(words without spaces: files, or tests in them; those of a file whose mark needs a library run with that mark). Needs
what the tests need, a C compiler and git; ccache saves half the time. Ends with 1 unless each is killed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIBRARIES = {"mpi": "mpi4py", "sklearn": "sklearn", "thinc": "thinc", "torch": "torch"}  # by the mark that needs it
HANGS = 900  # seconds: none of the tests takes nearly so long


def tests_of(mutant):
    head = mutant.read_text().partition("\n--- ")[0]
    return re.search(r"^Tests: (.+)$", head, re.MULTILINE)[1].split()


def files_of(mutant):
    return re.findall(r"^\+\+\+ b/(\S+)", mutant.read_text(), re.MULTILINE)


def mark_of(test):
    """The mark that all tests of its file have, if it needs a library; else ""."""
    text = (ROOT / test.partition("::")[0]).read_text()
    marks = re.search(r"^pytestmark = (.*)", text, re.MULTILINE)
    found = LIBRARIES.keys() & set(re.findall(r"pytest\.mark\.(\w+)", marks[1] if marks else ""))
    return next(iter(found), "")


def missing_for(mutant):
    """The libraries that its tests need and that are not here."""
    libraries = {LIBRARIES[mark] for mark in map(mark_of, tests_of(mutant)) if mark}
    return {library for library in libraries if find_spec(library) is None}


class Copy:
    """The tree in a folder, with a virtual environment that sees it, and the packages of this Python."""

    def __init__(self, folder):
        self.tree = folder / "tree"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.tree / name)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        self.python = folder / "venv" / "bin" / "python"
        needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        tools = [need for need in needs if not need.startswith("numpy")]  # NumPy is the one of this Python
        subprocess.run([self.python, "-m", "pip", "install", "-q", *tools], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = folder / "venv" / "lib" / version / "site-packages" / "mutants.pth"
        packages.write_text(f"{self.tree}\n{sysconfig.get_path('platlib')}\n")
        self.compiler = folder / "cc"  # optimizes less than setup.py wants, which takes a third of the time
        cached = "ccache" if shutil.which("ccache") else ""
        self.compiler.write_text(f'#!/bin/sh\nexec {cached} {os.environ.get("CC", "cc")} "$@" -O1 -g0\n')
        self.compiler.chmod(0o755)
        assert self.build(), "the tree does not build"
        self.whole = folder / "whole"
        self.whole.mkdir()
        for file in self.extensions():
            shutil.copy2(file, self.whole)

    def extensions(self):
        return (self.tree / "fastadam").glob("_core*.so")

    def build(self):
        env = {**os.environ, "CC": str(self.compiler)}
        command = [self.python, "setup.py", "-q", "build_ext", "--inplace"]
        return subprocess.run(command, cwd=self.tree, env=env, capture_output=True, check=False).returncode == 0

    def run(self, tests):
        """pytest's exit status, the first that is not 0; None if it hangs."""
        for mark in sorted({mark_of(test) for test in tests}):
            marked = [test for test in tests if mark_of(test) == mark]
            status = self.run_pytest([*marked, *(["-m", f"{mark} and not slow"] if mark else [])])
            if status != 0:
                return status
        return 0

    def run_pytest(self, arguments):
        library = Path(sys.prefix, "lib", "libmpi.so.12").resolve()  # of the package mpich, which mpi4py would not find
        env = {**os.environ, **({"MPI4PY_LIBMPI": str(library)} if library.exists() else {})}
        command = [self.python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
        with subprocess.Popen(
            command,
            cwd=self.tree,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                return process.wait(HANGS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)  # and the processes that it waits for
                return None

    def judge(self, mutant):
        applied = subprocess.run(
            ["git", "apply", "-C1", "--recount", mutant], cwd=self.tree, capture_output=True, check=False
        )
        if applied.returncode != 0:
            return "does not apply"
        try:
            compiled = not all(name.endswith(".py") for name in files_of(mutant))
            if compiled and not self.build():
                return "does not build"
            status = self.run(tests_of(mutant))
        finally:
            for name in files_of(mutant):
                shutil.copy(ROOT / name, self.tree / name)
            for file in self.whole.iterdir():
                shutil.copy2(file, self.tree / "fastadam")
        if status in (1, None) or status < 0:  # a test failed, hung or crashed
            return "killed"
        return "survived" if status == 0 else f"pytest ended with {status}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--sample", type=int, metavar="N")
    options = parser.parse_args()
    mutants = sorted(HERE.glob("*.patch"))
    for mutant in mutants:
        for test in tests_of(mutant):
            assert (ROOT / test.partition("::")[0]).is_file(), f"{mutant.name} names {test}, which is not there"
    if options.names:
        mutants = [HERE / f"{name.removesuffix('.patch')}.patch" for name in options.names]
    elif not options.full:
        if not options.sample:
            parser.error("which? --full, --sample=N or names")
        mutants = mutants[:: options.sample]
    for library in sorted(set().union(*map(missing_for, mutants))):
        left_out = [mutant for mutant in mutants if library in missing_for(mutant)]
        mutants = [mutant for mutant in mutants if mutant not in left_out]
        print(f"NOT RUN, for want of {library}: {', '.join(mutant.stem for mutant in left_out)}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        tests = sorted({test for mutant in mutants for test in tests_of(mutant)})
        status = copy.run(tests)
        assert status == 0, f"without a mutant pytest ended with {status}: {' '.join(tests)}"
        verdicts = []
        for mutant in mutants:
            begin = time.monotonic()
            verdicts.append(copy.judge(mutant))
            print(f"{verdicts[-1]:15} {mutant.stem} ({time.monotonic() - begin:.0f} s)", flush=True)
    killed = verdicts.count("killed")
    print(f"{killed} of {len(verdicts)} killed")
    return killed < len(verdicts)


if __name__ == "__main__":
    sys.exit(main())
