#include "cuda/tree_attention/instantiate.cuh"

APAR_INSTANTIATE_TREE_ATTENTION(BFloat16, Float8, 64);
