#if defined(__x86_64__)
#include "cpu/vec_avx512.h"
//
#include "cpu/tree_attention_tile.h"

namespace apar::cpu {

TileKernel tile_kernel_avx512(ElementType type) { return widening_kernel(type); }

}  // namespace apar::cpu
#endif
