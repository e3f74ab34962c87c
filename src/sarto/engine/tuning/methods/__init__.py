"""The tuning methods, one module each. `method.py` defines what a method is; `METHODS` is the table of all."""

from __future__ import annotations

from sarto.contract.tuning_run import RunSpec
from sarto.engine.tuning.methods.distillation import SEQUENCE_DISTILLATION, TOKEN_DISTILLATION
from sarto.engine.tuning.methods.method import Loss, Method, Start
from sarto.engine.tuning.methods.preference import PREFERENCE
from sarto.engine.tuning.methods.reinforcement import REINFORCEMENT, Rollout
from sarto.engine.tuning.methods.supervised import SUPERVISED
from sarto.errors import Unimplemented

__all__ = ["METHODS", "Loss", "Method", "Rollout", "Start", "method_of"]

METHODS: dict[str, Method] = {
    "supervised": SUPERVISED,
    "preference": PREFERENCE,
    "distillation": SEQUENCE_DISTILLATION,
    "reinforcement": REINFORCEMENT,
}


def method_of(spec: RunSpec) -> Method:
    """The method of a run. Raises Unimplemented for one that is not in METHODS, and for data that it does not read."""
    method = METHODS.get(spec.method)
    if method is None:
        known = ", ".join(METHODS)
        raise Unimplemented(f'There is no tuning method "{spec.method}" in this version of Sarto; it has: {known}.')
    if spec.teaching is not None and spec.teaching.level == "token":
        method = TOKEN_DISTILLATION
    if spec.data_format not in method.data_formats:
        listed = ", ".join(method.data_formats)
        raise Unimplemented(
            f'The method "{spec.method}" reads no data of the form "{spec.data_format}", only: {listed}.'
        )
    return method
