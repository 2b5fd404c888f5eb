#include "cuda/tree_attention/instantiate.cuh"

APAR_INSTANTIATE_TREE_ATTENTION(Half, Half, 96);
