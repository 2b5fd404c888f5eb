#include "cuda/tree_attention/hopper/instantiate.cuh"

APAR_INSTANTIATE_BULK_ATTENTION(Half, Float8, 256);
