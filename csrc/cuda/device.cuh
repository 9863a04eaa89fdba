// The words that kernel text speaks to the machine with: their list, and what they are in CUDA.
//
// The emulator of the tests (test/harness/emulator.h) is the second dictionary. Both are checked against the list here.
#pragma once

#include <concepts>

#include "../lattice/lattice.h"

namespace ctc_align {

constexpr int kWarp = 32;

#if defined(__CUDACC__)
#define CTC_ALIGN_UNROLL _Pragma("unroll")
#else
#define CTC_ALIGN_UNROLL
#endif

// What a Device has to say, a line a word. COLLECTIVES are called by all lanes of a warp, or all threads of a block,
// at the same place of the text. MEMORY WORDS are called by any lane, on words that cross between blocks of threads:
// relaxed ones carry their whole message themselves; a release makes all writes before it visible after the acquire
// that reads it.
// clang-format off
template <class D>
concept DeviceWords = requires(int n, bool holds, uint32_t word, uint32_t* words, uint64_t* pairs, float f, double d) {
  { D::thread() } -> std::same_as<int>;                       // in its block
  { D::lane() } -> std::same_as<int>;                         // in its warp
  { D::warp() } -> std::same_as<int>;                         // in its block
  { D::block() } -> std::same_as<uint32_t>;                   // in its grid
  { D::threads_per_block() } -> std::same_as<int>;
  { D::greater(f, f) } -> std::same_as<float>;                // the maximum; the arguments are never NaN
  { D::greater(d, d) } -> std::same_as<double>;
  { D::ones(word) } -> std::same_as<int>;                     // the number of bits that are set
  { D::opaque(word) } -> std::same_as<uint32_t>;              // the same value; the compiler forgets all about it
  { D::prefetch(words) } -> std::same_as<void>;               // into the second cache; a hint
  { D::shuffle_up(f, n) } -> std::same_as<float>;             // collective: from n lanes to the left, else its own
  { D::shuffle_xor(f, n) } -> std::same_as<float>;            // collective: from lane ^ n
  { D::any(holds) } -> std::same_as<bool>;                    // collective: whether it holds in any lane
  { D::warp_barrier() } -> std::same_as<void>;                // collective: orders memory within the warp
  { D::block_barrier() } -> std::same_as<void>;               // collective: orders memory within the block
  { D::block_barrier(n) } -> std::same_as<void>;              // the same; the emulator checks that all bring one n
  { D::take_ticket(words) } -> std::same_as<uint32_t>;        // memory: the value before; adds 1; orders nothing
  { D::load_relaxed(pairs) } -> std::same_as<uint64_t>;       // memory
  { D::store_relaxed(pairs, *pairs) } -> std::same_as<void>;  // memory
  { D::load_acquire(words) } -> std::same_as<uint32_t>;       // memory
  { D::store_release(words, word) } -> std::same_as<void>;    // memory
  { D::pause() } -> std::same_as<void>;                       // between two looks at a word that is not there yet
};
// clang-format on

#if defined(__CUDACC__)

struct CudaDevice {
  static constexpr unsigned kAll = 0xffffffffu;  // collectives are called by whole warps only

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % 32); }
  static __device__ __forceinline__ int warp() { return static_cast<int>(uniform(threadIdx.x / 32)); }
  static __device__ __forceinline__ int threads_per_block() { return static_cast<int>(blockDim.x); }
  static __device__ __forceinline__ uint32_t block() { return blockIdx.x; }

  // A value that all lanes of the warp hold, told in a way that the compiler understands: a reduction ends in a uniform
  // register. The compiler then knows that the warp stays together in branches that depend on it, and does not guard
  // the shuffles there against lanes that come alone.
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
  static __device__ __forceinline__ bool any(bool holds) { return __any_sync(kAll, holds); }
  static __device__ __forceinline__ void warp_barrier() { __syncwarp(); }
  static __device__ __forceinline__ void block_barrier(int = 0) { __syncthreads(); }

  // A NaN never comes here (lattice/emission.h), and which zero wins cannot be seen.
  static __device__ __forceinline__ float greater(float a, float b) { return fmaxf(a, b); }
  static __device__ __forceinline__ double greater(double a, double b) { return fmax(a, b); }
  static __device__ __forceinline__ int ones(uint32_t word) { return __popc(word); }
  static __device__ __forceinline__ uint32_t opaque(uint32_t value) {
    asm("" : "+r"(value));
    return value;
  }

  static __device__ __forceinline__ void prefetch(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
  }
  static __device__ __forceinline__ uint32_t take_ticket(uint32_t* counter) { return atomicAdd(counter, 1u); }
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

static_assert(DeviceWords<CudaDevice>);

#endif

}  // namespace ctc_align
