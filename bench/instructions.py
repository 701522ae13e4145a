"""Instructions per element of every loop, against a committed budget: python -m bench instructions [--update]

Counts, not times: a busy machine gives the figures of an idle one. Valgrind counts what the baseline and AVX2 loops
execute, over an array that is all vectors and over a short one with a tail. It cannot execute AVX-512: there the
vector loops are found in the disassembly, and their instructions are counted.
"""

import argparse
import ast
import json
import os
import platform
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from .results import table

ROOT = Path(__file__).parent.parent
BUDGETS = Path(__file__).with_suffix(".json")
SLACK = 1.01
SIZES = [4096, 31]
EXECUTED = [f"{isa} x {n}" for isa in ("baseline", "avx2") for n in SIZES]
# Rules, norms and formats. Not those for small squares, which do not run here, and not one that takes a single number.
KERNEL = r"((?!add_mean)\w+(?<!_small)_f(?:32|64)|(?:decode|encode)_\w+|random)_(baseline|avx2|avx512)"
COMPUTES = r"v(mul|add|sub)p.*%zmm|vp(add|s[lr]l)[wd] .*%zmm|vpmov[a-z]+ .*%zmm"
PARTS = "cpu", "coefficients", "kernels", "formats"
NEEDS = "this needs gcc or clang, binutils and valgrind"
WAY_OUT = "`python -m bench instructions --update`"


def run(*command):
    """What the command prints; if it cannot run, that is the end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is missing: {NEEDS}") from None
    if done.returncode:
        message = f"{shlex.join(command)} failed with status {done.returncode}; {NEEDS}"
        raise SystemExit(f"{message}\n{done.stdout}{done.stderr}")
    return done.stdout


def compiler_version(cc):
    """As in "gcc 12". Each major version makes its own loops, and has a budget of its own."""
    macros = dict(re.findall(r"#define (\w+) (\S+)", run(*cc, "-dM", "-E", "-xc", os.devnull)))
    for name, macro in ("clang", "__clang_major__"), ("gcc", "__GNUC__"):
        if macro in macros:
            return f"{name} {macros[macro]}"
    raise SystemExit(f"{shlex.join(cc)} is neither gcc nor clang: there are budgets for those only")


def flags():
    """FLAGS of setup.py, which cannot be imported without starting a build."""
    nodes = (node for node in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(node.value) for node in nodes if ast.unparse(node.targets[0]) == "FLAGS")


def functions(program):
    """{function: its disassembly}"""
    parts = re.split(r"^[0-9a-f]+ <(.+)>:$", run("objdump", "-d", "--no-show-raw-insn", program), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def avx512_loops(body, size):
    """Instructions per element of `size` bytes of each innermost loop that computes with whole registers.

    How many elements a turn takes is told by its largest pointer increment, that of an index times its scale, or by the
    shift of a counter of turns."""
    lines = re.findall(r"^ *([0-9a-f]+):\t(\S+) *(.*)", body, flags=re.MULTILINE)
    code = [(int(address, 16), operation, operands) for address, operation, operands in lines]
    jumps = [(int(to.split()[0], 16), at) for at, operation, to in code if operation[0] == "j" and to[0] != "*"]
    loops = [(first, last) for first, last in jumps if first <= last]
    figures = []
    for first, last in sorted(loops):
        if any((first, last) != inner and first <= inner[0] and inner[1] <= last for inner in loops):
            continue
        turn = [f"{operation} {operands}" for at, operation, operands in code if first <= at <= last]
        computes = any(re.match(COMPUTES, instruction) for instruction in turn)
        text = "\n".join(turn)
        scale = {index: int(by) for by, index in sorted(x[::-1] for x in re.findall(r",(%\w+),([1248])\)", text))}
        steps = re.findall(r"^(add|sub) \$0x([0-9a-f]+),(%r\w+)", text, flags=re.MULTILINE)
        steps = [(int(by, 16) if how == "add" else 2**64 - int(by, 16)) * scale.get(to, 1) for how, by, to in steps]
        steps += [1 << int(by, 16) for by in re.findall(r"^shl \$0x([0-9a-f]),%r", text, flags=re.MULTILINE)]
        bytes_a_turn = max((step for step in steps if step < 1 << 16), default=0)
        if computes and bytes_a_turn >= 64:
            figures.append(len(turn) * size / bytes_a_turn)
    return figures


def executed(program, n, profile):
    """[kernel, instruction set, instructions that one call executed, with all that it called]"""
    spelled_out = ("--compress-strings=no", "--compress-pos=no")  # at every call
    run("valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", *spelled_out, program, str(n))
    return re.findall(rf"^cfn={KERNEL}\ncalls=.*\n\S+ (\d+)$", Path(profile).read_text(), flags=re.MULTILINE)


def measure(cc):
    """{kernel: {column: instructions per element}}, every column of every kernel."""
    sources = [Path(__file__).with_suffix(".c"), *(ROOT / f"csrc/{x}.c" for x in PARTS)]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/instructions"
        run(*cc, *flags(), f"-I{ROOT}/csrc", *map(str, sources), "-o", program, "-lm")
        for function, body in functions(program).items():
            if found := re.fullmatch(KERNEL, function):
                row = figures.setdefault(found[1], {})
                if found[2] == "avx512":
                    # The random bits of a whole block take no loop, but those of a part.
                    size = 8 if found[1].endswith("f64") else 2 if found[1] == "random" else 4
                    loops = avx512_loops(body, size)
                    row |= {f"avx512 loop {i}": figure for i, figure in enumerate(loops, 1)}
        for n in SIZES:
            for kernel, isa, count in executed(program, n, f"{folder}/profile"):
                column = f"{isa} x {n}"
                figures[kernel][column] = max(int(count) / n, figures[kernel].get(column, 0))  # others call it for less
    needed = {kernel: EXECUTED if "8bit" in kernel else [*EXECUTED, "avx512 loop 1"] for kernel in figures}
    lost = [f"{kernel}, {column}" for kernel in figures for column in needed[kernel] if not figures[kernel].get(column)]
    if lost or not figures:
        reasons = "no loop with arithmetic on zmm registers (avx512), or not executed (avx2: has this CPU got it?)"
        raise SystemExit("\n".join(["Nothing to count:", *(lost or ["no kernel at all"]), reasons]))
    return {kernel: {column: round(count, 4) for column, count in row.items()} for kernel, row in figures.items()}


def compare(figures, budget):
    """Print the table; return a line for each figure that is not within its budget."""
    rows = [
        {"instructions per element": kernel, **{column: f"{row[column]:.2f}" for column in EXECUTED},
         "avx512, each loop": ", ".join(f"{count:.2f}" for column, count in row.items() if column not in EXECUTED)}
        for kernel, row in sorted(figures.items())
    ]  # fmt: skip
    print(table(rows))
    came, planned = ({(k, c): x for k, row in each.items() for c, x in row.items()} for each in (figures, budget))
    problems = [f"{', '.join(pair)} has a budget but is not compiled" for pair in planned if pair not in came]
    for pair, count in sorted(came.items()):
        what, most = ", ".join(pair), planned.get(pair)
        if most is None:
            problems.append(f"{what} has no budget")
        elif count > most * SLACK:
            more = f"{count / most - 1:.1%} over the budget of {most:.2f}"
            problems.append(f"{what}: {count:.2f} came, {most * SLACK:.2f} is allowed ({more})")
        elif count * SLACK < most:
            print(f"{what}: {count:.2f} is well under {most:.2f}; {WAY_OUT} keeps the gain")
    return problems


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="make what this compiler gives its budget")
    options = parser.parse_args(arguments)
    if platform.machine() != "x86_64":
        raise SystemExit(f"counts the kernels of x86-64; this machine is {platform.machine()}")
    cc = shlex.split(os.environ.get("CC", "cc"))
    compiler = compiler_version(cc)
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    if compiler not in budgets and not options.update:
        raise SystemExit(f"no budget for {compiler}, only for {', '.join(budgets) or 'none'}: add it with {WAY_OUT}")
    figures = measure(cc)
    if options.update:
        budgets[compiler] = figures
        text = json.dumps(budgets, indent=1, sort_keys=True)
        BUDGETS.write_text(re.sub(r"{[^{}]*}", lambda kernel: " ".join(kernel[0].split()), text) + "\n")
    print(f"{compiler}\n")
    if problems := compare(figures, budgets[compiler]):
        way_out = f"Make the loop shorter; or, if it is worth it, {WAY_OUT}, and say why in the commit."
        raise SystemExit("\n".join(["", *problems, way_out]))
    print(f"\nall within {SLACK - 1:.0%} of the budget")
