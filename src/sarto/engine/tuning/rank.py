"""One of the further ranks of a run: the same base and adapter on another device, and a share of every step.

`python -m sarto.engine.tuning.rank` reads what it is to be from the first line of its standard input and its orders
from the others; with the end of that it ends. It writes no file. Started by `team.py`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sarto.engine.data.store import TokenStore
from sarto.engine.tuning.session import Rows, Session
from sarto.engine.tuning.team import Team
from sarto.errors import SartoError
from sarto.schema.runs import ChosenParameters, RunSpec

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
    """A line for each rank after the first."""
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
    team = Team(request.rank, spec.ranks)
    orders = team.orders()
    try:
        session = Session(
            spec, request.parameters, Rows.of(TokenStore(request.training)),
            Rows.of(TokenStore(validation)) if validation else None, team=team,
        )  # fmt: skip
    except SartoError:  # a fault of the request, which the leader finds too and tells; it ends this rank
        logger.exception("rank refused")
        next(orders)
        raise
    session.follow(orders)


if __name__ == "__main__":
    main()
