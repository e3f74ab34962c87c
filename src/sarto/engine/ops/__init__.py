"""The few operations that decide speed. `plain` defines them in ordinary torch; `fused` has backward passes of its own,
`compiled` their element-wise parts from `kernels.cpp`; `accelerated` is what a CUDA device needs; `choose` picks once.
"""
