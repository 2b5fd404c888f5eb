#include "cuda/tree_attention/hopper/instantiate.cuh"

APAR_INSTANTIATE_BULK_ATTENTION(BFloat16, Float8, 256);
