"""What a page says about the machine: processor or GPU, instruction sets, versions, commit and date."""

import datetime
import os
import re
import subprocess
import sys

import peers
from cases import make_inputs
from processes import ROOT, last_line


def describe_source(command):
    """The first lines of a page that a small benchmark makes."""
    import torch

    made = commit_and_date()
    versions = f"package at {made['commit']}, torch {torch.__version__}"
    return f"{made['date']}, {versions}; `{command}`. {processor_name()}, threads: {torch.get_num_threads()}."


def processor_name():
    found = re.search(r"^Model name: *(.+)$", output_of("lscpu"), re.MULTILINE)
    return found[1] if found else os.uname().machine


def describe_cpu_machine(package, peers_found):
    processor = dict(re.findall(r"^\s*([^:\n]+):\s*(.+)$", output_of("lscpu"), re.MULTILINE))
    return {
        "processor": processor.get("Model name", os.uname().machine),
        "family": processor.get("CPU family"),
        "model": processor.get("Model"),
        "hypervisor": processor.get("Hypervisor vendor"),
        "cores": len(os.sched_getaffinity(0)),
        "caches": {level: processor.get(f"{level} cache") for level in ("L1d", "L2", "L3")},
        "flags": re.findall(r"\b(?:sse4|avx|fma|f16c|asimd|sve)\w*", processor.get("Flags", "")),
        "memory_GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "package": package,
        "peers": peers_found,
        **commit_and_date(),
    }


def describe_gpu_machine():
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_GB": round(properties.total_memory / 1e9),
        "driver": last_line(output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")) or None,
        "torch": torch.__version__,
        "nvcc": last_line(output_of("nvcc", "--version")) or None,
        **commit_and_date(),
    }


def commit_and_date():
    return {
        "commit": output_of("git", "describe", "--always", "--dirty").strip() or None,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def output_of(*command):
    """What a command prints; nothing if the command is missing."""
    try:
        environment = os.environ | {"LC_ALL": "C"}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment).stdout
    except OSError:
        return ""


def file_name(processor):
    """Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz -> intel_xeon_platinum_8488c"""
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|\bnvidia\b|@.*", "", processor.lower())
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def probe(backend):
    """Loads a backend and returns its version. A measurement: it runs in the Python that has the backend."""
    import torch

    peers.load(backend)(*make_inputs(1, 50, 10, 32))
    if backend != "ours":
        return {"version": peers.version(backend), "torch": torch.__version__}
    import torch_ctc_align

    return {"version": torch_ctc_align.__version__, "torch": torch.__version__} | configuration()


def configuration():
    """The instruction sets, as the package reports them."""
    import torch_ctc_align

    config = torch_ctc_align.config()
    return {"cpu_in_use": config.cpu, "cpus": config.cpus}
