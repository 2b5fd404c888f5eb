// Marks of functions that host and device share.
#pragma once

#if defined(__CUDACC__)
#define APAR_HOST_DEVICE __host__ __device__
#else
#define APAR_HOST_DEVICE
#endif
