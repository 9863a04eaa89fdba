"""Where the measurements of gpu.py run: on the GPU; or on the CPU, to try out the programs, with numbers of no meaning.

Both have the same words. The dry run has tiny sizes, the host's clock in place of events, and no graphs or memory.
"""

import re
import time


class Gpu:
    name = "cuda"
    copied_bytes = 1 << 30  # of the floors

    def fit(self, sizes):
        return sizes

    def times_ms(self, call, repeats):
        import torch

        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return times

    def launch_nothing(self):
        import torch

        torch.cuda._sleep(0)  # a kernel that does nothing

    def capture(self, call):
        """A function that replays the call from a CUDA graph."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def watch_memory(self):
        """Returns a function that says how many bytes were allocated at the peak since now, beside those of before."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - before

    def count_launches(self, call):
        """Counts the device's kernels and memsets, and times them by name: {"sweep_kernel": microseconds, ...}."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        work = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        kernels = {}
        for event in work:
            name = re.sub(r"(\w+::|\(anonymous namespace\)::|void )+|[<(].*", "", event.name).strip()
            kernels[name] = round(kernels.get(name, 0) + event.time_range.elapsed_us(), 1)
        return {"launches": len(work), "kernels_us": kernels}


class DryRun:
    name = "cpu"
    copied_bytes = 1 << 10

    def fit(self, sizes):
        most = {"batch": 2, "frames": 40, "labels": 8, "classes": 7}
        return {name: min(size, most[name]) for name, size in sizes.items()}

    def times_ms(self, call, repeats):
        times = []
        for _ in range(min(repeats, 2)):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def launch_nothing(self):
        pass

    def capture(self, call):
        return call

    def watch_memory(self):
        return lambda: 0

    def count_launches(self, call):
        call()
        return {"launches": 0, "kernels_us": {}}


DEVICES = {device.name: device for device in (Gpu(), DryRun())}
