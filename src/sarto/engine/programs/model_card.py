"""The model card of an export: README.md with the facts from control and from the check."""

from __future__ import annotations

import json
from typing import Any

from sarto.contract.common import ParityCertificate
from sarto.contract.export_run import ExportSpec


def model_card(spec: ExportSpec, certificate: ParityCertificate) -> str:
    """Front matter in the form of model hubs, then the facts."""
    facts: dict[str, Any] = {
        "Model": spec.model,
        "Base model": spec.base.public_name,
        "Base weights, sha256": spec.base.digest,
        "Base quantised to": spec.base.quantisation,
        "License of the base": spec.license,
        "Format": spec.format,
        **spec.card,
    }
    lines = ["---", f"base_model: {json.dumps(spec.base.public_name)}", f"license: {json.dumps(spec.license)}"]
    lines += [
        "library_name: peft" if spec.format == "adapter" else "library_name: transformers",
        "tags: [sarto]",
        "---",
    ]
    lines += ["", f"# {spec.title or spec.model}", ""]
    lines += [f"- {name}: {_shown(value)}" for name, value in facts.items() if value not in (None, "", {})]
    checked = (
        "The files were read back in a process of their own. "
        f"On {certificate.rows} rows of {spec.held_out_uri} prompts and replies have the same token ids, "
        f"and over {certificate.reply_tokens} reply tokens the divergence from the served model is "
        f"{certificate.mean_kl_nats:.3g} nats a token ({certificate.kl_tolerance_nats:.3g} is allowed); "
        f"{certificate.same_choice_share:.1%} of the tokens are the same choice."
    )
    lines += ["", "## Checked against the served model", "", checked, ""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"`{json.dumps(value, ensure_ascii=False, sort_keys=True)}`"
