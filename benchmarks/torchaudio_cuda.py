"""Times torchaudio's CUDA forced_align, the kernel that ours has to beat, and two floors of the machine.

    python benchmarks/torchaudio_cuda.py [OUT.json]

Needs a GPU and a torchaudio whose CUDA operators load. It takes one item a call, so a batch is that many calls. Each
case runs in a process of its own, because some of them kill it. Times are medians between CUDA events, after warm-up.
"""

import json
import statistics
import subprocess
import sys

CASES = [  # batch, frames, labels, classes
    (1, 1_500, 200, 32),
    (64, 1_500, 200, 32),
    (256, 1_500, 200, 32),
    (64, 1_500, 200, 5_000),
    (1, 500, 60, 1_024),
    (1, 20_000, 5_000, 32),
    (1, 50_000, 25_000, 32),
    (1, 178_572, 40_931, 191),
]
CASE_SECONDS = 100


def median_ms(call, repeats):
    import torch

    times = []
    for _ in range(repeats + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[1:])


def time_case(batch, frames, labels, classes):
    import resource

    import torch
    import torchaudio

    generator = torch.Generator("cuda").manual_seed(0)
    log_probs = torch.randn(batch, frames, classes, device="cuda", generator=generator).log_softmax(-1)
    targets = torch.randint(1, classes, (batch, labels), device="cuda", generator=generator, dtype=torch.int32)

    def call():
        for b in range(batch):
            torchaudio.functional.forced_align(log_probs[b : b + 1], targets[b : b + 1])

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ms = median_ms(call, 3 if frames > 10_000 or batch > 1 else 10)
    host_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"ms": round(ms, 3), "host_MB": round(host_mb)}


def floors():
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    tiny = torch.zeros(1, device="cuda")
    copy_ms = median_ms(lambda: target.copy_(source), 20)
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_GBps": round(2 * source.numel() / copy_ms / 1e6),
        "launch_us": round(1e3 * median_ms(lambda: [tiny.zero_() for _ in range(100)], 20) / 100, 2),
    }


def in_own_process(*argv):
    command = [sys.executable, __file__, *map(str, argv)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {CASE_SECONDS} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last_line = (done.stderr.strip().splitlines() or [""])[-1]
    return {"error": f"exit status {done.returncode}: {last_line[:160]}"}


def main():
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(time_case(*map(int, sys.argv[2:]))))
    elif sys.argv[1:] == ["--floors"]:
        print(json.dumps(floors()))
    else:
        result = {"machine": in_own_process("--floors"), "cases": []}
        print(result["machine"], flush=True)
        for case in CASES:
            sizes = dict(zip(("batch", "frames", "labels", "classes"), case, strict=True))
            row = sizes | in_own_process("--case", *case)
            print(row, flush=True)
            result["cases"].append(row)
        if len(sys.argv) > 1:
            with open(sys.argv[1], "w") as out:
                json.dump(result, out, indent=1)


if __name__ == "__main__":
    main()
