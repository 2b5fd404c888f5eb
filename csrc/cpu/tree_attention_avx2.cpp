#if defined(__x86_64__)
#include "cpu/vec_avx2.h"
//
#include "cpu/tree_attention_tile.h"

namespace apar::cpu {

TileKernel tile_kernel_avx2(ElementType kv_type) { return widening_kernel(kv_type); }

}  // namespace apar::cpu
#endif
