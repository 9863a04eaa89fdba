// The sweep for every processor.
#include "isa.h"
#include "vector.h"

namespace ctc_align {
namespace {
struct Portable;
}  // namespace
const Isa kPortable = make_isa<VectorLanes<float, 4, Portable>, VectorLanes<double, 4, Portable>>();
}  // namespace ctc_align
