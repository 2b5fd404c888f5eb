#include "cpu/vec_portable.h"
//
#include "cpu/tree_attention_tile.h"

namespace apar::cpu {

TileKernel tile_kernel_portable(ElementType kv_type) { return widening_kernel(kv_type); }

}  // namespace apar::cpu
