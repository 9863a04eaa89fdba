// The words that kernels.cuh speaks, as CUDA has them.
#pragma once

#include "../lattice/lattice.h"

namespace ctc_align {

struct CudaDevice {
  static constexpr unsigned kAll = 0xffffffffu;  // collectives are called by whole warps only

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % 32); }
  static __device__ __forceinline__ int warp() { return static_cast<int>(uniform(threadIdx.x / 32)); }
  static __device__ __forceinline__ int threads_per_block() { return static_cast<int>(blockDim.x); }
  static __device__ __forceinline__ uint32_t block() { return blockIdx.x; }

  // A value that all lanes of the warp hold, told in a way that the compiler understands: a reduction ends in a uniform
  // register. It then knows that the warp stays together in branches that depend on it, and need not guard the shuffles
  // there against lanes that come alone.
  static __device__ __forceinline__ uint32_t uniform(uint32_t value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(kAll, value);
#else
    return value;
#endif
  }

  template <class T>
  static __device__ __forceinline__ T shuffle_up(T value, int delta) {
    return __shfl_up_sync(kAll, value, delta);
  }
  template <class T>
  static __device__ __forceinline__ T shuffle_xor(T value, int lane_mask) {
    return __shfl_xor_sync(kAll, value, lane_mask);
  }
  // The maximum; a NaN never comes here (lattice/emission.h), and which zero wins cannot be seen.
  static __device__ __forceinline__ float greater(float a, float b) { return fmaxf(a, b); }
  static __device__ __forceinline__ double greater(double a, double b) { return fmax(a, b); }

  // The same value, of which the compiler knows nothing any more.
  static __device__ __forceinline__ uint32_t opaque(uint32_t value) {
    asm("" : "+r"(value));
    return value;
  }

  static __device__ __forceinline__ int ones(uint32_t word) { return __popc(word); }

  static __device__ __forceinline__ void prefetch(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
  }

  static __device__ __forceinline__ bool any(bool holds) { return __any_sync(kAll, holds); }
  static __device__ __forceinline__ void warp_barrier() { __syncwarp(); }
  static __device__ __forceinline__ void block_barrier() { __syncthreads(); }

  static __device__ __forceinline__ uint32_t take_ticket(uint32_t* counter) { return atomicAdd(counter, 1u); }

  // Words that cross between blocks of threads. Relaxed ones carry their whole message themselves; release and acquire
  // make everything written before the one visible behind the other.
  static __device__ __forceinline__ uint64_t load_relaxed(const uint64_t* word) {
    uint64_t value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
  }
  static __device__ __forceinline__ void store_relaxed(uint64_t* word, uint64_t value) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
  }
  static __device__ __forceinline__ uint32_t load_acquire(const uint32_t* word) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
  }
  static __device__ __forceinline__ void store_release(uint32_t* word, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
  }
  static __device__ __forceinline__ void pause() { __nanosleep(20); }
};

}  // namespace ctc_align
