// The sweep for x86-64 with AVX2. The pragma stands before all includes: what follows is compiled for it.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#include "avx2.h"
#include "isa.h"

namespace ctc_align {
namespace {
struct Avx2;
}  // namespace
const Isa kAvx2 = make_isa<Avx2Lanes<Avx2>, VectorLanes<double, 4, Avx2>>();
}  // namespace ctc_align

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
