// The sweep for x86-64 with AVX-512 (F, BW, DQ, VL). The pragma stands before all includes: what follows is compiled for it.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "avx512.h"
#include "isa.h"

namespace ctc_align {
namespace {
struct Avx512;
}  // namespace
const Isa kAvx512 = make_isa<Avx512Lanes<Avx512>, VectorLanes<double, 8, Avx512>>();
}  // namespace ctc_align

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
