#include "kernels/cuda/expert_tables.h"
