"""Programs that earlier releases saved, with an older torch, run here and give the same bits.

`data/saved/VERSION` has an exported program and a package of AOTInductor, made once by save_programs.py, and their
inputs and outputs. If torch is to refuse one of them some day, that belongs to docs/compatibility.md.
"""

import json
import platform
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
import torch._inductor.codecache  # torch 2.10 forgets to import it before it loads a package
from test_operator import assert_same
from torch.utils._pytree import tree_leaves

import torch_ctc_align

SAVED = Path(__file__).parent / "data" / "saved"
RELEASES = sorted(path.name for path in SAVED.iterdir())


def load(release, kind):
    path = str(SAVED / release / f"{kind}.pt2")
    return torch.export.load(path).module() if kind == "exported" else torch._inductor.aoti_load_package(path)


@pytest.fixture(params=["exported", "compiled"])
def kind(request):
    if request.param == "compiled" and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip(f"the packages were compiled for Linux on x86_64, this is {platform.machine()}")
    return request.param


def test_this_release_is_kept():
    """A release is not made without its programs."""
    assert torch_ctc_align.__version__ in RELEASES


@pytest.mark.parametrize("release", RELEASES)
def test_saved_programs_give_the_same_bits(release, kind):
    program = load(release, kind)
    cases = torch.load(SAVED / release / "cases.pt")
    assert len(cases) == 3
    for arguments, expected in cases:
        found = program(*arguments)
        assert type(found[0]) is torch_ctc_align.Alignment
        assert type(found[0].spans) is torch_ctc_align.TokenSpans
        assert_same(tree_leaves(found), expected)


@pytest.mark.parametrize("release", RELEASES)
def test_saved_programs_keep_their_errors(release, kind):
    """The kernel's text. A package is another matter: torch 2.10 compiled calls that do not ask whether they failed.

    So what fails there is what takes the results. docs/compatibility.md tells it.
    """
    (log_probs, targets, *rest), _ = torch.load(SAVED / release / "cases.pt")[0]
    targets = targets.clone()
    targets[0, 1] = 2
    text = r"forced_align: targets\[0, 1\] must not be the blank, expected a label other than 2, found 2"
    error, text = (ValueError, text) if kind == "exported" else (RuntimeError, "doesn't have storage|API call failed")
    with pytest.raises(error, match=text):
        load(release, kind)(log_probs, targets, *rest)


@pytest.mark.parametrize("release", RELEASES)
def test_programs_were_saved_with_the_oldest_torch(release):
    """The oldest that the package supports, so that every one that may meet them is newer."""
    made_with = json.loads((SAVED / release / "made_with.json").read_text())
    assert made_with["torch_ctc_align"] == release
    assert made_with["torch"].split("+")[0] == "2.10.0"


@pytest.fixture(params=RELEASES)
def library(request, tmp_path):
    """The library in a package."""
    with zipfile.ZipFile(SAVED / request.param / "compiled.pt2") as package:
        (name,) = (name for name in package.namelist() if name.endswith(".so"))
        return package.extract(name, tmp_path)


def said_by(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_packages_run_on_any_x86_processor(library):
    """No vector register wider than SSE2's: AVX-512 is not everywhere, AVX neither."""
    code = said_by("objdump", "-d", library)
    assert "%xmm" in code
    assert "%ymm" not in code
    assert "%zmm" not in code


def test_packages_load_under_a_new_glibc(library):
    """From 2.41 on it refuses a library that asks for an executable stack, flags RWE."""
    (flags,) = re.findall(r"GNU_STACK(?: +0x\w+)+ (\w+)", said_by("readelf", "-lW", library))
    assert flags == "RW"
