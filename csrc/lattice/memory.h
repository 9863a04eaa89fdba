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
#include <utility>

#include "lattice.h"

#if defined(__has_feature)
#define CTC_ALIGN_HAS_FEATURE(feature) __has_feature(feature)
#else
#define CTC_ALIGN_HAS_FEATURE(feature) 0
#endif

namespace ctc_align {

struct Array {
  void* memory;
  size_t bytes;  // that it has room for
};

// Arrays of a thread that nobody uses: at most kOfEachSize between two powers of two, and at most kMostBytes together.
class FreeArrays {
 public:
  static constexpr bool kKeeps =
#if defined(__SANITIZE_ADDRESS__) || CTC_ALIGN_HAS_FEATURE(address_sanitizer)
      false;  // a checker of addresses must see every array's own size
#else
      true;
#endif

  FreeArrays() = default;
  FreeArrays(const FreeArrays&) = delete;
  FreeArrays& operator=(const FreeArrays&) = delete;
  ~FreeArrays() { clear(); }

  // An array with room for `bytes`. A new one has no more, for budgets are counted in bytes.
  static Array take(size_t bytes) {
    const size_t n = size_of(bytes);
    if (n < kSizes) {
      for (Array& free : of_thread().arrays_[n]) {
        if (free.bytes >= bytes && free.memory) {
          of_thread().bytes_ -= free.bytes;
          return std::exchange(free, Array{nullptr, 0});
        }
      }
    }
    return {::operator new(bytes), bytes};
  }

  // Keeps the largest of each size. Where there is no room for it, the others belonged to items of other sizes.
  static void give(Array array) noexcept {
    const size_t n = size_of(array.bytes);
    FreeArrays& kept = of_thread();
    if (n < kSizes && kept.keeps_) {
      if (kept.bytes_ + array.bytes > kMostBytes) {
        kept.clear();
      }
      kept.bytes_ += array.bytes;
      for (Array& free : kept.arrays_[n]) {
        if (!free.memory || free.bytes < array.bytes) {
          std::swap(free, array);
        }
      }
      kept.bytes_ -= array.bytes;
    }
    ::operator delete(array.memory);
  }

  // Gives this thread's arrays back to the system.
  static void release() { of_thread().clear(); }

 private:
  static constexpr size_t kSizes = kKeeps ? 9 : 0;
  static constexpr size_t kSmallest = 10, kOfEachSize = 2, kMostBytes = 256 * 1024;

  static size_t size_of(size_t bytes) { return std::bit_width((bytes > 0 ? bytes - 1 : 0) >> kSmallest); }
  static FreeArrays& of_thread() {
    static thread_local FreeArrays arrays;
    return arrays;
  }
  void clear() {
    for (auto& of_a_size : arrays_) {
      for (Array& free : of_a_size) {
        ::operator delete(std::exchange(free, Array{nullptr, 0}).memory);
      }
    }
    bytes_ = 0;
  }

  std::array<std::array<Array, kOfEachSize>, kSizes + 1> arrays_ = {};
  size_t bytes_ = 0;
  bool keeps_ = true;

  friend class KeepNothing;
};

// While it lives this thread keeps nothing: budgets count every array that is held.
class KeepNothing {
 public:
  explicit KeepNothing(bool holds) : keeps_before_(FreeArrays::of_thread().keeps_) {
    if (holds) {
      FreeArrays::release();
      FreeArrays::of_thread().keeps_ = false;
    }
  }
  KeepNothing(const KeepNothing&) = delete;
  KeepNothing& operator=(const KeepNothing&) = delete;
  ~KeepNothing() { FreeArrays::of_thread().keeps_ = keeps_before_; }

 private:
  bool keeps_before_;
};

template <class T>
struct GiveBack {
  size_t bytes = 0;
  void operator()(T* array) const noexcept { FreeArrays::give({array, bytes}); }
};

template <class T>
using Memory = std::unique_ptr<T[], GiveBack<T>>;

template <class T>
Memory<T> uninitialized(index_t count) {
  static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= alignof(std::max_align_t));
  if (count > std::numeric_limits<index_t>::max() / static_cast<index_t>(sizeof(T))) {
    throw std::bad_alloc();
  }
  const Array array = FreeArrays::take(static_cast<size_t>(count) * sizeof(T));
  return Memory<T>(static_cast<T*>(array.memory), GiveBack<T>{array.bytes});
}

}  // namespace ctc_align
