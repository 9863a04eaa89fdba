// What goes wrong in CUDA, as an exception that says what to do.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace ctc_align {

// "12.8" of 12080.
inline std::string cuda_version(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// What to do about an error, where that can be told.
inline std::string advice_on(cudaError_t error) {
  if (error == cudaErrorInsufficientDriver) {
    int runtime = 0, driver = 0;  // the driver's is 0 where there is none
    cudaRuntimeGetVersion(&runtime);
    cudaDriverGetVersion(&driver);
    // docs.nvidia.com/deploy/cuda-compatibility: the first driver of each major version serves all of its minor ones.
    const char* const oldest = runtime < 12000 ? "450" : runtime < 13000 ? "525" : "580";
    return "; this torch_ctc_align has the runtime of CUDA " + cuda_version(runtime) + ", which needs driver " +
           oldest + " or newer, and " +
           (driver ? "the driver here knows CUDA " + cuda_version(driver) : "there is no driver") +
           ": update the driver, or build with an older CUDA";
  }
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    return "; this torch_ctc_align was not built for this GPU: build it from source with the GPU's compute capability "
           "in "
           "TORCH_CUDA_ARCH_LIST";
  }
  return "";
}

inline void check_cuda(const char* name, cudaError_t error, const char* action) {
  if (error != cudaSuccess) {
    // "CUDA" tells Python that this does not refuse an argument (as_raised in _library.py).
    throw std::runtime_error(std::string(name) + ": CUDA failed in " + action + ": " + cudaGetErrorString(error) +
                             advice_on(error));
  }
}

}  // namespace ctc_align
