"""Layer 3: X2L interfaces, from what a frozen encoder saw or heard to vectors that an LLM reads (system.md section 2).

A new X joins by a class of `base.Interface` and a case in `build.build_interface`.
"""
