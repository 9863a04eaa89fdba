// Memory for the arrays of an item, without values, kept for the next item of the thread.
//
// A batch of short items asks for the same few sizes again and again. What the C library gets back from an item it may
// return to the system, and then every page of the next item's arrays is a page fault: an eighth of the time of a call
// with 32 items of 1,500 frames.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#include "lattice.h"

#if defined(__has_feature)
#define CTC_ALIGN_HAS_FEATURE(feature) __has_feature(feature)
#else
#define CTC_ALIGN_HAS_FEATURE(feature) 0
#endif

namespace ctc_align {

// Arrays of a thread that nobody uses. Sizes are powers of two, from 1 KB to 512 KB, and there are at most
// kOfEachSize of each: 2 MB at most.
class FreeArrays {
 public:
  FreeArrays() = default;
  FreeArrays(const FreeArrays&) = delete;
  FreeArrays& operator=(const FreeArrays&) = delete;
  ~FreeArrays() { clear(); }

  // Gives this thread's arrays back to the system.
  static void release() { of_thread().clear(); }

  static void* take(size_t bytes) {
    const size_t n = size_of(bytes);
    if (n >= kSizes) {
      return ::operator new(bytes);
    }
    Size& size = of_thread().sizes_[n];
    return size.count > 0 ? size.arrays[--size.count] : ::operator new(size_t{1} << (n + kSmallest));
  }

  static constexpr bool kKeeps =
#if defined(__SANITIZE_ADDRESS__) || CTC_ALIGN_HAS_FEATURE(address_sanitizer)
      false;  // a checker of addresses must see every array's own size
#else
      true;
#endif

  // `bytes` as it was taken.
  static void give(void* array, size_t bytes) noexcept {
    const size_t n = size_of(bytes);
    if (n < kSizes) {
      Size& size = of_thread().sizes_[n];
      if (size.count < kOfEachSize) {
        size.arrays[size.count++] = array;
        return;
      }
    }
    ::operator delete(array);
  }

 private:
  static constexpr size_t kSizes = kKeeps ? 10 : 0;
  static constexpr size_t kSmallest = 10, kOfEachSize = 2;

  struct Size {
    std::array<void*, kOfEachSize> arrays;
    size_t count = 0;
  };

  static size_t size_of(size_t bytes) { return std::bit_width((bytes > 0 ? bytes - 1 : 0) >> kSmallest); }
  static FreeArrays& of_thread() {
    static thread_local FreeArrays arrays;
    return arrays;
  }

  void clear() {
    for (Size& size : sizes_) {
      while (size.count > 0) {
        ::operator delete(size.arrays[--size.count]);
      }
    }
  }

  std::array<Size, kSizes + 1> sizes_ = {};
};

template <class T>
struct GiveBack {
  size_t bytes = 0;
  void operator()(T* array) const noexcept { FreeArrays::give(array, bytes); }
};

template <class T>
using Memory = std::unique_ptr<T[], GiveBack<T>>;

template <class T>
Memory<T> uninitialized(index_t count) {
  static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= alignof(std::max_align_t));
  if (count > std::numeric_limits<index_t>::max() / static_cast<index_t>(sizeof(T))) {
    throw std::bad_alloc();
  }
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  return Memory<T>(static_cast<T*>(FreeArrays::take(bytes)), GiveBack<T>{bytes});
}

}  // namespace ctc_align
