from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from trimtab.orchestrator.schemas import SCHEMAS, schema_text, write_schemas

FILES = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_documented_schema_is_the_one_in_use(name: str) -> None:
    text = (FILES / f"{name}.schema.json").read_text(encoding="utf-8")
    assert text == schema_text(SCHEMAS[name])


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_schema_is_itself_valid(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


def test_schemas_are_written_one_file_each(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["plan-step.schema.json", "plan.schema.json"]
