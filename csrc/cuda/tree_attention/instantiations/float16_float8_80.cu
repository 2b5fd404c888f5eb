#include "cuda/tree_attention/instantiate.cuh"

APAR_INSTANTIATE_TREE_ATTENTION(Half, Float8, 80);
