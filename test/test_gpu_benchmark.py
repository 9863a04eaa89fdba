"""`make gpu` without a GPU: the dry run goes through all of its program, so a typo costs no time on a GPU.

And the parts of the estimates of `make cuda-cycles` that need neither nvcc nor nvdisasm.
"""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GPU = BENCHMARKS / "gpu.py"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The results and the page."""
    out = tmp_path_factory.mktemp("dry")
    subprocess.run([sys.executable, GPU, "--device", "cpu", "--out", out], check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "gpu_dry_run.json").read_text()), (out / "gpu_dry_run.md").read_text()


def test_every_row_of_ours_is_measured(dry_run):
    result, _ = dry_run
    rows = result["rows"] + result["sums"]
    assert (len(result["rows"]), len(result["sums"])) == (7, 8)
    for row in rows:
        assert min(row["ours"]["ms"], row["ours"]["graph_ms"]) > 0
        assert row["ours"]["equals_cpu"] is True
    assert all(row["ours"]["equal_runs"] == 20 for row in result["sums"])
    assert all(step["passed"] for step in result["steps"].values())


def test_losses_and_precision_are_measured(dry_run):
    losses = [row for row in dry_run[0]["sums"] if "torch" in row]
    assert [row["batch"] for row in losses] == [32, 64, 256, 64]
    for row in losses:
        assert row["ours"]["loss_ms"] > 0
        for rival in ("torch", "cuDNN"):
            assert row[rival]["ms"] > 0
            assert row[rival]["gradient_off_by"] < 1e-4  # both find the same posteriors, torch's in logarithms
        assert "ms" in row["Triton"] or row["Triton"]["error"].startswith("not here")
        ours, theirs = row["precision"]["ours"], row["precision"]["torch"]
        assert ours["gradient_off_by"] < 1e-6  # some ulps
        assert theirs["gradient_off_by"] < 1e-4
    assert sum("precision" in row for row in dry_run[0]["sums"]) == 6


def test_the_page_has_all_tables(dry_run):
    page = dry_run[1]
    for title in ("Time", "Sums over all paths", "Losses, forward and backward", "Precision of the sums", "Checks"):
        assert f"\n## {title}\n" in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for header, *lines in tables:
        assert {line.count("|") for line in lines} == {header.count("|")}
    assert page.count("| class_posteriors | 64 | 1,500 | 200 | 5,000 |") == 2


@pytest.mark.parametrize("quick, only_sums", [(False, False), (True, False), (False, True)])
def test_what_a_run_on_a_gpu_goes_through(benchmarks, monkeypatch, tmp_path, quick, only_sums):
    """The steps in their order, with the machine, the build and the tests replaced."""
    import gpu

    def passes(*_):
        return {"passed": True, "outcome": "replaced"}

    machine = {
        "device": "NVIDIA A1",
        "multiprocessors": 1,
        "date": "",
        "commit": "",
        "torch": "",
        "nvcc": "",
        "driver": "",
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "describe_gpu_machine", lambda: machine)
    monkeypatch.setattr(gpu, "Budget", gpu.DryBudget)
    for step in ("build", "run_tests", "run_sanitizer"):
        monkeypatch.setattr(gpu, step, passes)
    with pytest.raises(SystemExit) as end:
        gpu.run_all(tmp_path, quick, only_sums, minutes=1)
    assert not end.value.code
    result = json.loads((tmp_path / f"gpu_a1{'_sums' * only_sums}.json").read_text())
    sanitizers = ["memcheck", "memcheck of the sums", "racecheck", "racecheck of the sums"]
    sanitizers = [] if quick else [step for step in sanitizers if "sums" in step or not only_sums]
    assert list(result["steps"]) == ["build", "tests", *sanitizers]
    assert (len(result["rows"]), len(result["sums"])) == (0 if only_sums else 7, 8)


def test_a_measurement_is_a_process_of_its_own():
    command = [sys.executable, GPU, "--child", "measure_floors", '{"device": "cpu"}']
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(output.splitlines()[-1]).keys() == {"copy_GBps", "launch_us", "graph_us"}


def test_missed_targets_are_shown(benchmarks):
    import page

    assert page.target_met(0.3, 0.3) == "yes"
    assert page.target_met(0.45, 0.3) == "MISSED, 1.5 times"
    assert page.target_met(None, 0.3) == "not measured"
    row = {"operator": "class_posteriors", "batch": 1, "frames": 2, "labels": 1, "classes": 3}
    row |= {"target_ms": 0.08, "graph_target_ms": 0.05, "ours": {"ms": 0.07, "graph_ms": 0.06}}
    assert "yes, MISSED, 1.2 times" in page.sum_times(row)


def test_wrong_rows_end_the_program_with_an_error(benchmarks):
    import gpu_sums

    right = {"equals_cpu": True, "equal_runs": gpu_sums.RUNS}
    assert not gpu_sums.went_wrong({"ours": right, "cuDNN": {"error": "refused"}, "target_ms": 0.001})
    for wrong in ({"equals_cpu": False}, {"equal_runs": gpu_sums.RUNS - 1}, {"error": "died (signal SIGSEGV)"}):
        assert gpu_sums.went_wrong({"ours": right | wrong})


def test_a_loss_in_triton_is_measured_if_it_is_here(benchmarks, monkeypatch):
    """flag_gems.ctc_loss has torch's arguments, with the reduction as a number, 0 for none."""
    import gpu_sums

    flag_gems = types.ModuleType("flag_gems")
    flag_gems.ctc_loss = lambda *arguments, **options: torch.ctc_loss(*arguments, **options)
    monkeypatch.setitem(sys.modules, "flag_gems", flag_gems)
    sizes = {"batch": 2, "frames": 20, "labels": 4, "classes": 5}
    assert gpu_sums.measure_rival("Triton", sizes, "cpu")["gradient_off_by"] < 1e-4


def test_columns_wait_for_their_neighbours_and_for_room(benchmarks):
    from cuda_sum_cycles import sweep_columns

    assert sweep_columns([(0, 100)], rate=2, lag=5, slots=1) == 200
    assert sweep_columns([(0, 100), (10, 100)], rate=2, lag=5, slots=2) == 5 + 20 + 180
    assert sweep_columns([(0, 100), (10, 100)], rate=2, lag=5, slots=1) == 200 + 180
    assert sweep_columns([(0, 0), (10, 100)], rate=2, lag=5, slots=1) == 180  # the first has no frames


def test_estimates_have_the_plan_of_the_library(benchmarks, missing):
    if not shutil.which(os.environ.get("CXX", "c++").split()[0]):
        missing("c++", "there is no C++ compiler")
    from cuda_sum_cycles import BACKWARD, FINISH, FORWARD, MEETING, SPANS, read_plan

    def kernels(*arguments, **options):
        return [launch["kernel"] for launch in read_plan(*arguments, **options)["launches"]]

    assert kernels(64, 1_500, 200, spans=False, whole_rows=True) == [MEETING]
    assert kernels(64, 1_500, 200, spans=True, whole_rows=True) == [BACKWARD, SPANS]
    assert kernels(256, 1_500, 200, spans=False, whole_rows=True) == [MEETING] * 2  # more alphas than are kept
    assert kernels(1, 5_000, 2_500, spans=False, whole_rows=True) == [FORWARD, BACKWARD, FINISH]
    assert kernels(1, 5_000, 2_500, spans=True, whole_rows=True) == [FORWARD, BACKWARD, SPANS]


def way_of(find, lines, *arguments):
    from cuda_cycles import Instruction
    from cuda_sum_cycles import Body

    code = [Instruction(16 * n, text, 0) for n, text in enumerate(lines)]
    branches = {i.address: 16 * int(i.text.split()[-1]) for i in code if "BRA" in i.text}
    return [i.address // 16 for i in find(Body(code, branches, 0, code[-1].address), *arguments)]


def test_ways_leave_out_what_is_rare(benchmarks):
    """A stage of one frame: a branch over the normalization, one over a wait."""
    from cuda_sum_cycles import Work, consumer_way, producer_way

    consumer = ["FADD R0", "@P1 BRA 4", "FSETP.GT R0", "FSEL R0", "SHFL.UP R0", "BAR.SYNC", "@P0 BRA 0"]
    assert way_of(consumer_way, consumer, False) == [0, 1, 4, 5, 6]
    assert way_of(consumer_way, consumer, True) == [0, 1, 2, 3, 4, 5, 6]
    producer = ["LDG.E R0", "@P1 BRA 4", "NANOSLEEP 0x14", "@P2 BRA 2", "FMUL R0", "STS R0", "BAR.SYNC", "@P0 BRA 0"]
    assert way_of(producer_way, producer, Work(several=False)) == [0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize("inside_is_first", [True, False])
def test_a_consumer_runs_one_version_of_a_stage(benchmarks, inside_is_first):
    """The one that asks for no frame whether it is of the sweep, wherever the compiler puts it."""
    from cuda_sum_cycles import consumer_way

    if inside_is_first:
        consumer = ["@P1 BRA 4", "FADD R0", "SHFL.UP R0", "BRA 7", "@P2 BRA 7", "FADD R0", "SHFL.UP R0", "BAR.SYNC"]
    else:
        consumer = ["@P1 BRA 5", "@P2 BRA 4", "FADD R0", "SHFL.UP R0", "BRA 7", "FADD R0", "SHFL.UP R0", "BAR.SYNC"]
    inside = [1, 2, 3] if inside_is_first else [5, 6]
    assert way_of(consumer_way, [*consumer, "@P0 BRA 0"], False) == [0, *inside, 7, 8]


def test_a_producer_adds_up_labels_in_fours(benchmarks):
    """Rests of a division by four one after the other, then a block of four fours. Without stars, no star's column."""
    from cuda_sum_cycles import Work, producer_way

    one, four = ["LDS.64 R2", "LDS R4", "FADD R0"], ["LDS.64 R2"] * 4
    group = [
        "LDS.U16 R0",
        "@P1 BRA 9",
        *one,
        "@P1 BRA 9",
        *one,
        "@P2 BRA 14",
        *four,
        "FMUL R0",
        "STG.E R0",
        "@P3 BRA 0",
    ]
    blank, star = ["@P4 BRA 20", "FMUL R0", "STG.E R0"], ["@P4 BRA 23", "FMUL R0", "STG.E R0"]
    producer = [*group, *blank, *star, "BAR.SYNC", "@P0 BRA 0"]
    ends = [14, 15, 16, 17, 18, 19, 20, 23, 24]
    assert way_of(producer_way, producer, Work(False, fours=1)) == [0, 1, 2, 3, 4, 5, 9, *ends]
    assert way_of(producer_way, producer, Work(False, fours=2)) == [*range(10), *ends]
    assert way_of(producer_way, producer, Work(False, fours=4)) == [*range(14), *ends]
    twice = way_of(producer_way, producer, Work(False, groups=2, fours=4))
    assert twice == [*range(17), *range(14), *ends]
    loop = ["LDS.U16 R0", *one, "@P1 BRA 1", "STG.E R0", "@P3 BRA 0", "BAR.SYNC", "@P0 BRA 0"]
    assert way_of(producer_way, loop, Work(False, fours=3)) == [0, *range(1, 5), *range(1, 5), *range(1, 9)]
