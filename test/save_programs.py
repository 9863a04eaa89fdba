"""Saves programs of this release, which every later torch and every later release must run (test_saved_programs.py).

    TORCHES/oldest/bin/python test/save_programs.py test/data/saved/0.1.0

Run it once a release, with the oldest torch that the package supports: torch reads what an older torch has saved, and
promises nothing the other way round. It needs a C++ compiler. It writes

    exported.pt2    torch.export.save of Programs() below, with a dynamic batch, frames and labels
    compiled.pt2    the same, compiled by AOTInductor for any x86-64 processor
    cases.pt        tuples of inputs and outputs, of other sizes than the program was exported with
    made_with.json  the versions

The outputs come from a plain call, and are compared bit for bit: what stands around the operators adds up multiples of
1/8 only, so that it is exact in any order.
"""

import json
import os
import platform
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import torch_ctc_align

SIZES = [(3, 20, 6), (2, 47, 11), (5, 9, 3)]  # B, T, L; exported with the first


class Programs(torch.nn.Module):
    """Everything that a saved program may hold of ours: the operators, a module, and its named tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.aligner = torch_ctc_align.ForcedAligner(blank=2)

    def forward(self, log_probs, targets, input_lengths, target_lengths, star_scores, wild_gaps):
        arguments = log_probs, targets, input_lengths, target_lengths, 2
        with_stars = {"star_scores": star_scores, "wild_gaps": wild_gaps}
        log_probs_of_loss = log_probs.transpose(0, 1)
        return (
            self.aligner(*arguments[:4]),
            torch_ctc_align.forced_align(*arguments, **with_stars, strict=False),
            torch_ctc_align.posteriors(*arguments),
            torch_ctc_align.class_posteriors(*arguments, **with_stars),
            torch_ctc_align.ctc_loss(log_probs_of_loss, *arguments[1:], reduction="none"),
        )


def make_arguments(B: int, T: int, L: int, C: int = 7) -> tuple[torch.Tensor, ...]:
    """The last item has no path, but with stars."""
    generator = torch.Generator().manual_seed(B)
    log_probs = torch.randint(-64, 1, (B, T, C), generator=generator) / 8
    log_probs[B - 1, 1] = -torch.inf
    targets = torch.randint(0, C - 1, (B, L), generator=generator)
    targets += targets >= 2
    lengths = torch.arange(T - B + 1, T + 1), torch.arange(L, L - B, -1).clamp(min=1)
    return log_probs, targets, *lengths, torch.full((B, T), -1.5), torch.ones(B, L + 1, dtype=torch.bool)


def export() -> torch.export.ExportedProgram:
    B, T, L = Dim("B", max=64), Dim("T", min=2, max=4096), Dim("L", max=2048)
    shapes = {0: B, 1: T}, {0: B, 1: L}, {0: B}, {0: B}, {0: B, 1: T}, {0: B, 1: L + 1}
    return torch.export.export(Programs().eval(), make_arguments(*SIZES[0]), dynamic_shapes=shapes)


def forget_where(program: torch.export.ExportedProgram) -> None:
    """Drops the stack traces, which name files of this machine."""
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)


def compile_for_any_processor(program: torch.export.ExportedProgram, path: Path) -> None:
    """Without vectors, and with -march=x86-64 in place of the -march=native that inductor always passes.

    Without an executable stack, too, for which an object of inductor's asks by accident: glibc 2.41 and newer refuse to
    load such a library. The text of the generated C++ is left out: it names folders of this machine. (Its files stay:
    torch 2.10 finds the metadata by their names.)
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        compiler = Path(folder, "g++")
        more = f"-ffile-prefix-map={Path(torch.__file__).parent}=torch -ffile-prefix-map={folder}=."
        compiler.write_text(f"""#!/bin/bash
[[ " $* " == *" -shared "* ]] && stack=-Wl,-z,noexecstack  # a flag for the linker makes g++ link, whatever it was asked
exec "${{CXX:-g++}}" "${{@/#-march=native/-march=x86-64}}" {more} $stack
""")
        compiler.chmod(0o755)
        options = {"cpp.cxx": (None, str(compiler)), "cpp.simdlen": 1, "cpp.threads": 1}
        whole = str(Path(folder, path.name))
        torch._inductor.aoti_compile_and_package(program, package_path=whole, inductor_configs=options)
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, b"// left out\n" if name.endswith(".cpp") else old.read(name))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    program = export()
    forget_where(program)
    torch.export.save(program, folder / "exported.pt2")
    compile_for_any_processor(program, folder / "compiled.pt2")
    cases = []
    for sizes in SIZES:
        arguments = make_arguments(*sizes)
        cases.append((arguments, tuple(tree_leaves(Programs()(*arguments)))))
    torch.save(cases, folder / "cases.pt")
    versions = {
        "torch_ctc_align": torch_ctc_align.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    (folder / "made_with.json").write_text(json.dumps(versions, indent=2) + "\n")
    for path in sorted(folder.iterdir()):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
