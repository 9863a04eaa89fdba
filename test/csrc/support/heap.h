// A heap that counts, and that can fail: it replaces operator new. A program includes this once.
#pragma once

#include <malloc.h>

#include <atomic>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <new>

namespace support {

struct Heap {
  std::atomic<long> blocks{0};
  std::atomic<long> bytes{0};
  std::atomic<long> most_bytes{0};
  std::atomic<long> until_failure{LONG_MAX};  // allocations that succeed before one fails
  std::atomic<bool> fails_for_good{false};    // all later ones fail, too
};
inline Heap heap;
inline thread_local bool may_fail = true;

inline void* allocate(size_t bytes) {
  if (may_fail) {
    const long left = heap.until_failure--;
    if (left == 0 || (left < 0 && heap.fails_for_good)) {
      throw std::bad_alloc();
    }
  }
  void* block = std::malloc(bytes);
  if (!block) {
    throw std::bad_alloc();
  }
  std::memset(block, 0xFF, bytes);  // NaN, and not a sensible count: memory that was never written must not matter
  ++heap.blocks;
  const long now = heap.bytes += static_cast<long>(malloc_usable_size(block));
  long most = heap.most_bytes;
  while (now > most && !heap.most_bytes.compare_exchange_weak(most, now)) {
  }
  return block;
}

inline void release(void* block) {
  if (block) {
    --heap.blocks;
    heap.bytes -= static_cast<long>(malloc_usable_size(block));
    std::free(block);
  }
}

}  // namespace support

void* operator new(size_t bytes) { return support::allocate(bytes); }
void* operator new[](size_t bytes) { return support::allocate(bytes); }
void operator delete(void* block) noexcept { support::release(block); }
void operator delete[](void* block) noexcept { support::release(block); }
void operator delete(void* block, size_t) noexcept { support::release(block); }
void operator delete[](void* block, size_t) noexcept { support::release(block); }
