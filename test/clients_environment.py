"""Makes torchaudio importable beside a torch without CUDA; `make test-clients` runs it with the Python of the clients.

    python test/clients_environment.py DIR     then, with LD_LIBRARY_PATH=DIR, import torchaudio

torchaudio's wheel is linked against CUDA, although its operators call none of it on CPU tensors. Three libraries that
have the names it is linked with, and no more, satisfy the loader. A torch with CUDA has the real ones: DIR stays empty.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

STUBS = {
    "libc10_cuda.so": [],
    "libtorch_cuda.so": [
        "aoti_torch_device_type_cuda",
        "aoti_torch_get_current_cuda_stream",
        "torch_c10_cuda_check_msg",
        "torch_c10_cuda_free_error_msg",
        "torch_cuda_stream_synchronize",
        "torch_get_cuda_stream_from_pool",
        "torch_set_current_cuda_stream",
    ],
    "libcudart.so.13": [
        "__cudaGetKernel",
        "__cudaLaunchKernel",
        "__cudaPopCallConfiguration",
        "__cudaPushCallConfiguration",
        "__cudaRegisterFatBinary",
        "__cudaRegisterFatBinaryEnd",
        "__cudaRegisterFunction",
        "__cudaRegisterVar",
        "__cudaUnregisterFatBinary",
        "cudaGetErrorName",
        "cudaGetLastError",
        "cudaMemcpy2DAsync",
        "cudaMemcpyAsync",
        "cudaMemset",
        "cudaMemsetAsync",
        "cudaSetDevice",
        "cudaStreamSynchronize",
    ],
}


def make_stub(folder: Path, library: str, functions: list[str]) -> None:
    """Compiles a library whose functions return 0. Its symbols have its name as their version, which CUDA's have."""
    with tempfile.TemporaryDirectory() as temporary:
        versions = Path(temporary, "versions")
        versions.write_text(f"{library} {{ global: *; }};")
        linker = [f"-Wl,-soname,{library}", f"-Wl,--version-script,{versions}"]
        subprocess.run(
            [os.environ.get("CXX", "c++"), "-shared", "-fPIC", *linker, "-x", "c", "-", "-o", folder / library],
            input="".join(f"long {name}(void) {{ return 0; }}\n" for name in functions),
            text=True,
            check=True,
        )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for library, functions in STUBS.items():
        (folder / library).unlink(missing_ok=True)
        if torch.version.cuda is None:
            make_stub(folder, library, functions)
    import_torchaudio = [sys.executable, "-c", "import torchaudio"]
    subprocess.run(import_torchaudio, env=os.environ | {"LD_LIBRARY_PATH": str(folder.resolve())}, check=True)
