"""JSON schemas of configs, by which editors complete and check YAML."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fairhuman.config.schema import Config

DIALECT = "http://json-schema.org/draft-07/schema#"
"""The version that editors' YAML servers read."""


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a training config."""
    schema = json_schema(Config, "FairHuman training config")
    # load_config replaces a path by what its file holds before it validates.
    deepspeed = schema["properties"]["deepspeed"]
    del deepspeed["type"], deepspeed["additionalProperties"]
    deepspeed["anyOf"] = [{"type": "object"}, {"type": "string"}]
    prompts = schema["$defs"]["Train"]["properties"]["sample_prompts"]
    listed = {key: prompts.pop(key) for key in ("type", "items", "maxItems")}
    listed["items"] = {"anyOf": [{"type": "string"}, listed["items"]]}
    prompts["anyOf"] = [listed, {"type": "string"}]
    return schema


def json_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    """Return a model's JSON schema in the DIALECT."""
    return {"$schema": DIALECT, **_in_dialect(model.model_json_schema()), "title": title}


def _in_dialect(node: Any) -> Any:
    """Write pydantic's 2020-12 as draft 7: a tuple's parts are `items`; texts are one line."""
    if isinstance(node, list):
        return [_in_dialect(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {
        "items" if key == "prefixItems" else key: _in_dialect(value) for key, value in node.items()
    }
    if isinstance(found.get("description"), str):
        found["description"] = " ".join(found["description"].split())
    return found
