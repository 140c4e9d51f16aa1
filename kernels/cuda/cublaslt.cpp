#include "kernels/cuda/cublaslt.h"
