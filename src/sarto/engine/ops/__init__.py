"""Operations that decide the speed. `reference` defines them in plain torch. `fused` has its own backward passes, with
element-wise parts from `native` (kernels.cpp) or `eager_kernels`. `cuda` is for CUDA devices; `select` chooses one."""
