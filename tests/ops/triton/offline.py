"""Compiles kernels for GPUs that are not there, and reads what came out: machine code, registers, spills."""

import collections
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Compiled(NamedTuple):
    """``opcodes``: how often each instruction stands in the machine code, by its full name and by its first part."""

    registers: int
    spills: int
    opcodes: collections.Counter
    layout_conversions: int
    intermediate: str

    def count(self, prefix):
        return sum(n for name, n in self.opcodes.items() if name.startswith(prefix))


def compile_for(target, kernel, **arguments):
    """Compile ``kernel`` for a name of TARGETS. Arguments: a type ("*fp16", "i32"; "i32:16" for a multiple of 16) where
    the kernel takes a value, else the constant; ``num_warps`` and ``num_stages`` as in a launch."""
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages") if name in arguments}
    names = kernel.arg_names
    assert set(arguments) == set(names), set(arguments) ^ set(names)
    typed = {n: a for n, a in arguments.items() if isinstance(a, str)}
    divisible = {
        (names.index(n),): [["tt.divisibility", 16]] for n, a in typed.items() if a[0] == "*" or a.endswith(":16")
    }
    source = ASTSource(
        kernel,
        {n: typed[n].partition(":")[0] if n in typed else "constexpr" for n in names},
        constexprs={n: a for n, a in arguments.items() if n not in typed},
        attrs=divisible,
    )
    options |= {"enable_fp_fusion": False, "debug": bool(kernel.debug)}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    read = _read_hip if TARGETS[target].backend == "hip" else _read_cuda
    return read(compiled)


def _read_cuda(compiled):
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    opcodes = collections.Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", code))
    registers = int(re.search(r"REG:(\d+)", usage).group(1))
    spills = sum(n for name, n in opcodes.items() if name.split(".")[0] in ("LDL", "STL"))
    return Compiled(registers, spills, opcodes, compiled.asm["ttgir"].count("convert_layout"), compiled.asm["ptx"])


def _read_hip(compiled):
    code = compiled.asm["amdgcn"]
    opcodes = collections.Counter(re.findall(r"^\s+([a-z]\w+)", code, re.MULTILINE))
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", code).group(1))
    spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", code).group(1))
    return Compiled(registers, spills, opcodes, compiled.asm["ttgir"].count("convert_layout"), code)


def _run(tool, *arguments):
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
