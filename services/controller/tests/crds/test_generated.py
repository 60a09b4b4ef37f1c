"""What is committed is what the models say; and what a model says is either published or refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from kars_controller.api_types import ALL_KINDS, Kind
from kars_controller.api_types.base import ApiModel
from kars_controller.crds import __main__ as command
from kars_controller.crds import definitions, schemas
from pydantic import Field

ROOT = Path(__file__).parents[4]
each_kind = pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.name)


def test_the_committed_files_are_what_the_models_say_in_any_process() -> None:
    # Another hash seed: nothing may depend on the order of a set.
    done = subprocess.run(
        [sys.executable, "-m", "kars_controller.crds", "check", str(ROOT)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_changed_a_missing_and_a_leftover_file_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["write", str(tmp_path)]) == 0
    assert command.main(["check", str(tmp_path)]) == 0
    folder = tmp_path / "deploy" / "crds"
    (folder / "kars.azure.com_mcpservers.yaml").write_text("kind: Nothing\n", encoding="utf-8")
    (folder / "kars.azure.com_karsevals.yaml").unlink()
    (folder / "kars.azure.com_gone.yaml").write_text("kind: Nothing\n", encoding="utf-8")
    capsys.readouterr()
    assert command.main(["check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("run `make crds`") == 3
    assert all(name in said for name in ("mcpservers", "karsevals", "gone"))
    assert command.main(["write", str(tmp_path)]) == 0
    assert command.main(["check", str(tmp_path)]) == 0
    assert not (folder / "kars.azure.com_gone.yaml").exists()


def test_a_wrong_command_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["generate"]) == 2
    assert "check REPOSITORY" in capsys.readouterr().err


@each_kind
def test_a_definition_is_structural(kind: Kind) -> None:
    schema = definitions.of(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for part in _objects(schema):
        assert not part.keys() & {"$ref", "$defs", "anyOf", "allOf", "oneOf", "title", "const"}
        assert "type" in part or part.get("x-kubernetes-preserve-unknown-fields"), part
        assert part.get("additionalProperties") is not False
        assert part.get("default", ...) is not None


@each_kind
def test_every_field_of_a_spec_says_what_it_means(kind: Kind) -> None:
    spec = definitions.of(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for part in _objects(spec):
        for name, field in part.get("properties", {}).items():
            assert field.get("description"), name


@each_kind
def test_every_definition_has_what_people_use(kind: Kind) -> None:
    found = definitions.of(kind)["spec"]
    (version,) = found["versions"]
    assert (version["served"], version["storage"], version["subresources"]) == (True, True, {"status": {}})
    assert found["names"]["categories"] == ["kars"]
    assert found["names"]["shortNames"]
    assert found["scope"] == ("Namespaced" if kind.namespaced else "Cluster")
    assert {"Age", "Phase"} <= {column["name"] for column in version["additionalPrinterColumns"]}
    root = version["schema"]["openAPIV3Schema"]
    assert root["required"] == ["spec"]
    conditions = root["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert "observedGeneration" in conditions["items"]["properties"]


@each_kind
def test_every_column_shows_a_field_that_exists(kind: Kind) -> None:
    root = definitions.of(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for column in kind.columns:
        here: dict[str, Any] = root
        for step in column.json_path.removeprefix(".").split("[")[0].split("."):
            if step in ("metadata", "creationTimestamp"):
                break
            assert step in here["properties"], f"{column.name}: {column.json_path}"
            here = here["properties"][step]


@each_kind
def test_a_rule_blames_a_field_that_exists(kind: Kind) -> None:
    root = definitions.of(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for part in _objects(root):
        for rule in part.get("x-kubernetes-validations", ()):
            here = part
            for step in filter(None, rule.get("fieldPath", "").split(".")):
                here = here["properties"][step]


def test_a_union_is_refused_because_no_api_server_could_check_it() -> None:
    class Either(ApiModel):
        value: int | str

    with pytest.raises(schemas.UnpublishableError, match=r"Either\.value: a union of 2 types"):
        schemas.of(Either)


def test_a_limit_that_an_api_server_would_not_check_is_refused() -> None:
    class Even(ApiModel):
        value: Annotated[int, Field(multiple_of=2)]

    with pytest.raises(schemas.UnpublishableError, match="multipleOf"):
        schemas.of(Even)


def _objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    inner = list(schema.get("properties", {}).values())
    inner += [
        schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), dict)
    ]
    for part in inner:
        yield from _objects(part)
