"""JSON Schemas of the TOML files: those that are shipped are valid by them, and what is wrong is found."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("jsonschema")

import jsonschema

from qmpalloc import cli
from qmpalloc.config.json_schema import schema_of
from qmpalloc.config.schema import ConfigFile
from qmpalloc.experiment.spec.schema import ExperimentFile

CONFIGURATION, EXPERIMENT = schema_of(ConfigFile), schema_of(ExperimentFile)
ROOT = Path(__file__).parents[2]
FILES = [*ROOT.glob("examples/*.toml"), *ROOT.glob("benchmarks/**/*.toml"), *ROOT.glob("docs/**/*.toml")]
TABLES = {path: tomllib.loads(path.read_text()) for path in FILES}
GUEST = {"name": "a", "floor": "1GiB", "cap": "2GiB", "baseline": "1GiB"}
GOOD = {"host": {"budget": "3GiB"}, "guest": [GUEST]}
READS = {"file": "1GiB", "reads": 5, "access": {"distribution": "normal"}}
PROGRAM = {"command": ["true"], "metric": [{"name": "t", "unit": "s", "better": "lower", "pattern": "(.*)"}]}
ARM = {"name": "static", "policy": "static"}


def mistakes(schema, tables):
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(tables)]


def an_experiment(*phases, **guest):
    guests = [{**GUEST, "memory": "2GiB", "phase": list(phases), **guest}]
    return {"experiment": {"name": "x", "budget": "3GiB"}, "guest": guests, "arm": [ARM]}


@pytest.mark.parametrize("schema", [CONFIGURATION, EXPERIMENT], ids=["configuration", "experiment"])
def test_they_are_schemas_and_every_key_is_described(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    undescribed = [
        f"{name}.{key}"
        for name, table in schema["$defs"].items()
        for key, value in table["properties"].items()
        if not value.get("description") and "const" not in value
    ]
    assert undescribed == []


@pytest.mark.parametrize("path", [path for path in FILES if "sweep" not in TABLES[path]], ids=lambda path: path.stem)
def test_files_that_are_shipped_are_valid(path):
    tables = TABLES[path]
    assert mistakes(EXPERIMENT if "experiment" in tables else CONFIGURATION, tables) == []


def test_what_the_readme_and_the_docs_show_is_valid():
    blocks = [text.partition("```")[0] for page in ("README.md", "docs/configuration.md")
              for text in (ROOT / page).read_text().split("```toml\n")[1:]]  # fmt: skip
    assert blocks
    for block in blocks:
        assert mistakes(CONFIGURATION, tomllib.loads(block)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": {"budget": 3}},
        {"host": {"budget": "3"}},
        {"host": {"budget": "3 GiB", "bugdet": "1GiB"}},
        {"host": {}},
        {"guest": []},
        {"guest": [{**GUEST, "vm": {"memory": "2GiB", "suite": "sid"}}]},
        {"control": {"interval": "5 parsecs"}},
        {"nonsense": {}},
        {"guest": [{**GUEST, "weight": 0}]},
        {"guest": [{**GUEST, "name": "../a"}]},
        {"image": {"packages": ["--x"]}},
    ],
)
def test_mistakes_in_a_configuration(wrong):
    assert mistakes(CONFIGURATION, GOOD) == []
    assert mistakes(CONFIGURATION, GOOD | wrong)


def test_phases_of_both_kinds():
    mixture = {"distribution": "mixture", "parts": [{"weight": 1, "distribution": "zipf", "exponent": 0.9}]}
    assert mistakes(EXPERIMENT, an_experiment(READS, PROGRAM, {**READS, "access": mixture})) == []


@pytest.mark.parametrize(
    "phase",
    [
        {**READS, "access": {"distribution": "normal", "exponent": 1}},
        {**READS, "access": {"distribution": "nonsense"}},
        {**READS, "access": {"distribution": "zipf", "exponent": 6}},
        {**READS, "access": {"distribution": "mixture", "parts": [{"weight": 0, "distribution": "uniform"}]}},
        {**READS, "access": {"distribution": "mixture", "parts": [{"distribution": "uniform"}]}},
        {**READS, "metric": []},
        {**PROGRAM, "metric": [{"name": "t"}]},
        {"reads": 5},
    ],
)
def test_mistakes_in_a_phase(phase):
    assert mistakes(EXPERIMENT, an_experiment(phase))


def test_the_command_prints_them():
    for kind, schema in (("configuration", CONFIGURATION), ("experiment", EXPERIMENT)):
        assert json.loads(CliRunner().invoke(cli.main, ["schema", kind]).output) == json.loads(json.dumps(schema))
