#include "cuda/tree_attention/hopper/instantiate.cuh"

APAR_INSTANTIATE_BULK_ATTENTION(BFloat16, BFloat16, 256);
