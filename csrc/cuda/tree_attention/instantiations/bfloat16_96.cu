#include "cuda/tree_attention/instantiate.cuh"

APAR_INSTANTIATE_TREE_ATTENTION(BFloat16, BFloat16, 96);
