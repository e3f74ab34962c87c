"""One of the further ranks of a run: the same base and adapter on another device, and a share of every step.

`python -m sarto.engine.tuning.rank_process` reads its configuration from the first line of its standard input and
commands from the others; it ends with its input. It writes no file. `ranks.py` starts it.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sarto.contract.tuning_run import ChosenParameters, RunSpec
from sarto.engine.dataset.token_store import TokenStore
from sarto.engine.tuning.ranks import Ranks
from sarto.engine.tuning.session import Session, TokenisedDataset
from sarto.errors import SartoError

logger = logging.getLogger(__name__)


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int
    spec: RunSpec
    parameters: ChosenParameters
    training: Path
    """Folder of a token store."""
    validation: Path | None


def requests(
    spec: RunSpec, parameters: ChosenParameters, training: TokenStore, validation: TokenStore | None
) -> list[bytes]:
    """The first input line of each rank after rank 0."""
    folder = validation.folder if validation else None
    return [
        Request(rank=rank, spec=spec, parameters=parameters, training=training.folder, validation=folder)
        .model_dump_json()
        .encode()
        for rank in range(1, spec.ranks)
    ]


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    request = Request.model_validate_json(sys.stdin.buffer.readline())
    spec, validation = request.spec, request.validation
    ranks = Ranks(request.rank, spec.ranks)
    commands = ranks.commands()
    try:
        session = Session(
            spec, request.parameters, TokenisedDataset.of(TokenStore(request.training)),
            TokenisedDataset.of(TokenStore(validation)) if validation else None, ranks=ranks,
        )  # fmt: skip
    except SartoError:  # a fault of the request, which the leader finds and reports too; it ends this rank
        logger.exception("rank refused")
        next(commands)
        raise
    session.follow(commands)


if __name__ == "__main__":
    main()
