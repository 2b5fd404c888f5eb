#include "cpu/vec_portable.h"
//
#include "cpu/tree_attention_tile.h"

namespace apar::cpu {

TileKernel tile_kernel_portable(ElementType type) { return widening_kernel(type); }

}  // namespace apar::cpu
