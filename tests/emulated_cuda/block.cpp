// Part of the emulated CUDA device; see README.md.
